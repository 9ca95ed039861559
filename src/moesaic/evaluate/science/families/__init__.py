"""One file per question family."""

from moesaic.evaluate.science.families import (
    alfven_mach,
    alfven_speed,
    cs_column,
    dcf,
    dcf_tangent,
    dust_mass,
    energy_balance,
    energy_density,
    equal_energy_radius,
    mass_to_flux,
    outflow_energy,
    outflow_mass,
    skalidis_tassis,
    sonic_mach,
    structure_function,
    total_field,
)
from moesaic.evaluate.science.problem import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        dcf,
        dcf_tangent,
        skalidis_tassis,
        structure_function,
        total_field,
        alfven_speed,
        alfven_mach,
        sonic_mach,
        energy_density,
        equal_energy_radius,
        energy_balance,
        mass_to_flux,
        dust_mass,
        cs_column,
        outflow_mass,
        outflow_energy,
    )
}
