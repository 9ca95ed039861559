"""Weights that a mixture starts from: presets, sizes, or by domain.

Published weights over SlimPajama (LLaMA-MoE, arXiv 2406.16554, section 4.2; Sheared-LLaMA, arXiv 2310.06694):
`llama` is LLaMA's own mixture, `sheared-llama` the final weights of Sheared-LLaMA's dynamic loading.
"""

from collections.abc import Mapping

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


def weights(
    wanted: str | Mapping[str, float], sizes: Mapping[str, int], like: Mapping[str, str | None]
) -> dict[str, float]:
    """Weights by domain that sum to 1.

    Args:
        wanted: uniform, size, a preset, or weights by domain. sizes: tokens or items per domain. like: SlimPajama domain of each domain.

    Raises:
        InputError: unknown domain, no counterpart for a preset, nothing but zeros.
    """
    raw = _raw(wanted, sizes, like)
    total = sum(raw.values())
    if total <= 0:
        raise InputError("mixture.weights: all weights are 0")
    return {name: value / total for name, value in sorted(raw.items())}


def _raw(
    wanted: str | Mapping[str, float], sizes: Mapping[str, int], like: Mapping[str, str | None]
) -> dict[str, float]:
    if not isinstance(wanted, str):
        unknown = sorted(set(wanted) - set(sizes))
        if unknown:
            raise InputError(
                f"mixture.weights.{unknown[0]}: no such domain to train on; domains: {', '.join(sorted(sizes))}"
            )
        return {name: float(wanted.get(name, 0.0)) for name in sizes}
    if wanted == "uniform":
        return dict.fromkeys(sizes, 1.0)
    if wanted == "size":
        return {name: float(size) for name, size in sizes.items()}
    preset = PRESETS[wanted]
    named = {name: like.get(name) for name in sizes}
    counterparts(named, f"the preset '{wanted}'")
    sharing = {value: sum(other == value for other in named.values()) for value in named.values()}
    return {name: preset[str(value)] / sharing[value] for name, value in named.items()}


def counterparts(like: Mapping[str, str | None], what: str) -> None:
    """Raises InputError when a domain has no SlimPajama counterpart, which `what` needs."""
    lacking = sorted(name for name, value in like.items() if value is None)
    if lacking:
        raise InputError(
            f"data.domains.{lacking[0]}.like: {what} needs each trained domain's SlimPajama counterpart, one of {', '.join(PRESETS['llama'])}"
        )
