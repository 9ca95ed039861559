"""Generators with exact solvers, one file per family; `GENERATORS`: task -> function of the item's random numbers."""

from collections.abc import Callable

from moesaic.evaluate.temporal.draft import Draft, Rng
from moesaic.evaluate.temporal.generators import (
    calendar,
    clock,
    durations,
    frequency,
    ordering,
    reading,
    relations,
)

Generator = Callable[[Rng], Draft]

GENERATORS: dict[str, Generator] = {
    function.__name__: function
    for function in (
        calendar.shift_medium,
        calendar.shift_long,
        calendar.shift_calendar,
        calendar.year_shift,
        calendar.month_shift,
        calendar.date_computation,
        calendar.week_identification,
        clock.shift_short,
        clock.hour_adjustment_24h,
        clock.hour_adjustment_12h,
        clock.time_zone_conversion,
        clock.time_computation,
        clock.arithmetic_application,
        durations.duration_computation,
        durations.duration_multistep_comparison,
        durations.duration_facts,
        durations.duration_direct_comparison,
        durations.duration_analogy,
        frequency.frequency_facts,
        frequency.frequency_comparison,
        frequency.frequency_computation,
        frequency.frequency_application,
        ordering.ordering_facts,
        ordering.typical_time_facts,
        ordering.typical_time_comparison,
        reading.ambiguity_interpretation,
        reading.duration_reading,
        reading.frequency_reading,
        reading.typical_time_reading,
        relations.relation,
        relations.temporal_nli,
    )
}
