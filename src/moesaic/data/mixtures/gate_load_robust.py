"""Mixture `gate-load-robust`: gate-load that tells signal from sampling noise and cannot collapse.

`gate-load` adds up eta Delta without bound, on a scale that depends on the number of experts, and a gap as large as four copies of one dataset
show by chance moves it as well. Here

1. squared distances are freed from sampling noise: rows are resampled (bootstrap), and the noise that resampling adds, E* d*^2 - d^2, is subtracted
   (a dataset of short or few rows would look remote just because its load is noisy);
2. the gap is relative, r_i = (Delta_i - mean Delta) / mean of the distances before 1, so that it means the same for any number of experts (and stays
   small where all that is there is noise);
3. r is a moving average over the updates, which see fresh rows, and so is the square of its bootstrap standard error;
4. what is not beyond `deviations` standard errors counts as 0, and when that holds for all datasets the weights stay as they are;
5. log w <- (1 - pull) log w + pull log w_0 + eta r, whose fixed point w_0 exp(eta r / pull) is bounded, then `floor` <= w <= `ceiling`;
6. `max_epochs` passes over a dataset that was gone through so often (data/sampler.py).

Shapes: D datasets, R rows, B resamples, L layers that are read, E experts.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from moesaic.data.mixtures.base import Probe, bounded, exponentiated
from moesaic.data.mixtures.gate_load import GateLoad, profile, profiled, squared_distances
from moesaic.errors import InputError


class GateLoadRobust(GateLoad):
    """Bounded exponentiated update on relative, significant distances."""

    DEFAULTS: Mapping[str, Any] = {"rows": 256, "layers": "all", "step_size": 0.2}

    def __init__(self, settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]):
        super().__init__(settings, sizes, like)
        for name in self.names:
            _resampled(name, min(sizes[name], self.probe["rows"]))
        self.weights = bounded(self.weights, settings["floor"], settings["ceiling"])
        self.start = dict(self.weights)
        self.gap: dict[str, float] = {}
        """Moving average of the relative gap; empty before the first update."""
        self.variance: dict[str, float] = {}
        """Of that average."""

    def look(self, probe: Probe | None) -> dict[str, float]:
        assert probe is not None, "the gate load was not measured"
        profiles = profiled(probe, self.names)
        distance_DD, gap_D, error_D = relative_gaps(probe, self.names, profiles, self.probe["bootstrap"])
        keep = self.probe["average"] if self.gap else 0.0
        for name, gap, error in zip(self.names, gap_D, error_D, strict=True):
            self.gap[name] = keep * self.gap.get(name, 0.0) + (1 - keep) * float(gap)
            self.variance[name] = keep**2 * self.variance.get(name, 0.0) + (1 - keep) ** 2 * float(error) ** 2
        errors = {name: math.sqrt(value) for name, value in self.variance.items()}
        clear = {name: abs(self.gap[name]) > self.probe["deviations"] * errors[name] for name in self.names}
        if any(clear.values()):
            self._follow({name: self.gap[name] if clear[name] else 0.0 for name in self.names})
        self.updates += 1
        out = self._logged(probe.kind, profiles, distance_DD, distance_DD.mean(axis=1))
        out["mixture/significant"] = float(sum(clear.values()))
        for name in self.names:
            out |= {f"mixture/gap/{name}": self.gap[name], f"mixture/gap_error/{name}": errors[name]}
        return out

    def _follow(self, gaps: Mapping[str, float]) -> None:
        pull, eta = self.settings["pull"], self.probe["step_size"]
        logs = {
            name: (1 - pull) * math.log(self.weights[name]) + pull * math.log(self.start[name]) + eta * gap
            for name, gap in gaps.items()
        }
        fitted = bounded(exponentiated(logs), self.settings["floor"], self.settings["ceiling"])
        self.weights = dict.fromkeys(self.weights, 0.0) | fitted

    def state(self) -> dict[str, Any]:
        return super().state() | {"gap": dict(self.gap), "variance": dict(self.variance)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.gap, self.variance = dict(state["gap"]), dict(state["variance"])


def relative_gaps(
    probe: Probe, names: list[str], profiles: np.ndarray, resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances without sampling noise [D, D], relative gaps [D] and their standard errors [D].

    Args:
        profiles: of all rows [D, L, E]. resamples: B; rows are drawn with replacement, because tokens of one row go together.

    Raises:
        InputError: a dataset with one row, whose noise nobody can tell.
    """
    for name in names:
        _resampled(name, len(probe.rows[name]))
    drawn_BDLE = np.stack(
        [profile(probe.rows[name], probe.kind, resample(probe, name, resamples)) for name in names], axis=1
    )
    squared_DD = squared_distances(profiles)
    squared_BDD = np.stack([squared_distances(drawn) for drawn in drawn_BDLE])
    noise_DD = np.maximum(squared_BDD.mean(axis=0) - squared_DD, 0.0)
    distance_DD = _signed_root(squared_DD - noise_DD)
    # a resample has the noise of the probe and its own
    distance_BDD = _signed_root(squared_BDD - 2 * noise_DD)
    scale = float(np.sqrt(squared_DD).mean())
    gap_D, gap_BD = _gaps(distance_DD, scale), _gaps(distance_BDD, scale)
    return np.maximum(distance_DD, 0.0), gap_D, gap_BD.std(axis=0, ddof=1)


def _resampled(name: str, rows: int) -> None:
    """Raises InputError for a dataset with one row, whose noise nobody can tell."""
    if rows < 2:
        raise InputError(
            f"mixture.method: gate-load-robust cannot tell the noise of {name}, which has one row to train on (or mixture.probe.rows is 1); "
            "add rows, or take gate-load"
        )


def resample(probe: Probe, name: str, count: int) -> np.ndarray:
    """How often each row is in each resample [B, R]; the draw depends on the rows and not on the dataset's name."""
    rows = np.ascontiguousarray(probe.rows[name])
    digest = hashlib.blake2b(rows.tobytes(), digest_size=8).digest()
    random = np.random.default_rng([probe.seed, *digest])
    return random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count).astype(float)


def _signed_root(squared: np.ndarray) -> np.ndarray:
    """Root of the size, with the sign: what is 0 but for noise stays as often below 0 as above, so that averages tend to 0."""
    found: np.ndarray = np.sign(squared) * np.sqrt(np.abs(squared))
    return found


def _gaps(distances: np.ndarray, scale: float) -> np.ndarray:
    """(Delta - mean Delta) / scale [..., D] from distances [..., D, D]; 0 when all distances are 0."""
    delta = distances.mean(axis=-1)
    found: np.ndarray = (delta - delta.mean(axis=-1, keepdims=True)) / (scale if scale > 0 else 1.0)
    return found
