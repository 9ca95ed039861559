"""Mixture `static`: fixed weights, from a preset or by domain.

Published weights over SlimPajama (LLaMA-MoE, arXiv 2406.16554, section 4.2; Sheared-LLaMA, arXiv 2310.06694):
`llama` is LLaMA's own mixture, `sheared-llama` the final weights of Sheared-LLaMA's dynamic loading.
"""

from collections.abc import Mapping
from typing import Any

from moesaic.errors import InputError

PRESETS: dict[str, dict[str, float]] = {
    "llama": {
        "commoncrawl": 0.67,
        "c4": 0.15,
        "github": 0.045,
        "wikipedia": 0.045,
        "books": 0.045,
        "arxiv": 0.025,
        "stackexchange": 0.02,
    },
    "sheared-llama": {
        "commoncrawl": 0.361,
        "c4": 0.492,
        "github": 0.008,
        "wikipedia": 0.031,
        "books": 0.091,
        "arxiv": 0.007,
        "stackexchange": 0.01,
    },
}


class Static:
    """Weights that never change."""

    def __init__(
        self, weights: str | Mapping[str, float], sizes: Mapping[str, int], like: Mapping[str, str | None]
    ):
        raw = _raw(weights, sizes, like)
        total = sum(raw.values())
        if total <= 0:
            raise InputError("mixture.weights: all weights are 0")
        self.weights = {name: value / total for name, value in sorted(raw.items())}

    def state(self) -> dict[str, Any]:
        """JSON-able; all there is to resume."""
        return {"weights": self.weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weights = dict(state["weights"])


def _raw(
    weights: str | Mapping[str, float], sizes: Mapping[str, int], like: Mapping[str, str | None]
) -> dict[str, float]:
    if not isinstance(weights, str):
        unknown = sorted(set(weights) - set(sizes))
        if unknown:
            raise InputError(
                f"mixture.weights.{unknown[0]}: no such domain to train on; domains: {', '.join(sorted(sizes))}"
            )
        return {name: float(weights.get(name, 0.0)) for name in sizes}
    if weights == "uniform":
        return dict.fromkeys(sizes, 1.0)
    if weights == "size":
        return {name: float(size) for name, size in sizes.items()}
    preset = PRESETS[weights]
    named = {name: like.get(name) for name in sizes}
    lacking = sorted(name for name, value in named.items() if value is None)
    if lacking:
        raise InputError(
            f"data.domains.{lacking[0]}.like: the preset '{weights}' needs each trained domain's SlimPajama counterpart, one of {', '.join(preset)}"
        )
    sharing = {value: sum(other == value for other in named.values()) for value in named.values()}
    return {name: preset[str(value)] / sharing[value] for name, value in named.items()}
