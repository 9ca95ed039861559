"""Mixture `gate-load`: more of the datasets whose experts are least like the others', as MoE-SFT publishes it.

MoE-SFT (arXiv 2406.11256, section 3, algorithm 1). A probe of each dataset gives its gate load, o_i = (token, chosen expert) hits by expert,
divided by their sum. With d_ij the Euclidean distance of o_i and o_j, and Delta_i = (1/D) sum_j d_ij (the distance 0 to itself counts),

    alpha = softmax(log w + eta Delta),    w <- (1 - c) alpha + c / D.

Published for LLaMA-MoE 3.5B (2/8): every 100 steps, eta 10, c 0.05, 80 rows, the last MoE layer; these are the defaults. For MoLM: every 200, c 0.8.

Several layers: loads are normalised layer by layer and d_ij is the root mean square over the layers.

Shapes: D datasets, R rows, L layers that are read, E experts.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from moesaic.data.mixtures import prior
from moesaic.data.mixtures.base import Mixture, Probe, ProbeKind, exponentiated, smoothed
from moesaic.errors import InputError

log = logging.getLogger("moesaic.mixture")

TINY = 1e-300
"""A weight that smoothing 0 let fall to 0 still has a logarithm."""


class GateLoad(Mixture):
    """Exponentiated update on the mean distance of gate loads."""

    PROBES = True
    DEFAULTS: Mapping[str, Any] = {"rows": 80, "layers": "last", "step_size": 10.0}
    """What a setting of `mixture.probe` that is null stands for."""

    def __init__(self, settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]):
        super().__init__(prior.weights(settings["weights"], sizes, like))
        self.settings = settings
        self.probe: dict[str, Any] = {
            key: self.DEFAULTS.get(key) if value is None else value
            for key, value in settings["probe"].items()
        }
        self.every = settings["every"]
        self.names = [name for name, value in self.weights.items() if value > 0]
        self.updates = 0
        if len(self.names) < 3:
            log.warning(
                "mixture.method: %s is neutral with %d dataset(s) (%s): each is as far from the others as they are from it, "
                "so nothing tells them apart; it needs at least 3",
                settings["method"],
                len(self.names),
                ", ".join(self.names),
            )

    def wants(self) -> Literal["model", "text"] | None:
        return "model"

    def look(self, probe: Probe | None) -> dict[str, float]:
        """One update. Raises InputError when the probe is not finite."""
        assert probe is not None, "the gate load was not measured"
        profiles = profiled(probe, self.names)
        distance_DD = np.sqrt(squared_distances(profiles))
        delta_D = distance_DD.mean(axis=1)
        self._move(delta_D)
        return self._logged(probe.kind, profiles, distance_DD, delta_D)

    def _move(self, delta_D: np.ndarray) -> None:
        """The published update from the mean distances, in order of `names`."""
        eta = self.probe["step_size"]
        logs = {
            name: math.log(max(self.weights[name], TINY)) + eta * float(delta)
            for name, delta in zip(self.names, delta_D, strict=True)
        }
        self.weights = dict.fromkeys(self.weights, 0.0) | smoothed(
            exponentiated(logs), self.probe["smoothing"]
        )
        self.updates += 1

    def _logged(
        self, kind: ProbeKind, profiles: np.ndarray, distance_DD: np.ndarray, delta_D: np.ndarray
    ) -> dict[str, float]:
        """Distances, their means and the loads (mean over the layers that are read) as metrics."""
        out = {f"mixture/delta/{name}": float(v) for name, v in zip(self.names, delta_D, strict=True)}
        for i, one in enumerate(self.names):
            for j in range(i):
                out[f"mixture/distance/{self.names[j]}/{one}"] = float(distance_DD[j, i])
        if kind == "gate":
            for name, load_E in zip(self.names, profiles.mean(axis=1), strict=True):
                out |= {f"mixture/load/{name}/expert_{e}": float(share) for e, share in enumerate(load_E)}
        return out

    def state(self) -> dict[str, Any]:
        return super().state() | {"updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.updates = int(state["updates"])


def profiled(probe: Probe, names: list[str]) -> np.ndarray:
    """The vector of each dataset [D, L, E]; gate loads sum to 1 over the experts of a layer.

    Raises:
        InputError: something in it is not finite.
    """
    found = np.stack([profile(probe.rows[name], probe.kind) for name in names])
    for name, values in zip(names, found, strict=True):
        if not np.isfinite(values).all():
            raise InputError(f"mixture: the probe of {name} is not finite; training has diverged")
    return found


def profile(rows_RLE: np.ndarray, kind: ProbeKind, weight_BR: np.ndarray | None = None) -> np.ndarray:
    """A dataset's vector from its rows [L, E], or one for each weighting of the rows [B, L, E].

    Gate loads add up hits, so that each token weighs the same; states and embeddings are averaged, so that each row weighs the same.
    """
    weight = np.ones((1, len(rows_RLE))) if weight_BR is None else weight_BR
    total = (weight @ rows_RLE.reshape(len(rows_RLE), -1)).reshape(len(weight), *rows_RLE.shape[1:])
    mass = total.sum(axis=-1, keepdims=True) if kind == "gate" else weight.sum(axis=1)[:, None, None]
    found: np.ndarray = total / np.maximum(mass, 1e-12)
    return found if weight_BR is not None else found[0]


def squared_distances(profiles: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [..., D, D] of vectors [..., D, L, E], mean over layers."""
    difference = profiles[..., :, None, :, :] - profiles[..., None, :, :, :]
    found: np.ndarray = np.square(difference).sum(axis=-1).mean(axis=-1)
    return found
