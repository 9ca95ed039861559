"""Losses that a domain's loss is compared with, by SlimPajama domain, nats per token.

`llama-2-7b`: LLaMA-MoE's own measurement, which its dynamic loading aims at. `sheared-llama-1.3b` and `-2.7b`: Sheared-LLaMA's targets, from a
scaling law for the size that is trained (arXiv 2310.06694, appendix; its published scripts). All with LLaMA-2's tokenizer: another
tokenizer or other text makes them meaningless, and the dense parent measured on the same blocks (`dense`) is the sounder choice.
"""

from collections.abc import Mapping

from moesaic.data.mixtures import prior
from moesaic.errors import InputError

NAMED: dict[str, dict[str, float]] = {
    "llama-2-7b": {
        "commoncrawl": 1.692, "c4": 2.075, "github": 0.698, "wikipedia": 1.590, "books": 1.925, "arxiv": 1.241, "stackexchange": 1.497,
    },
    "sheared-llama-2.7b": {
        "commoncrawl": 1.8712, "github": 0.6883, "books": 2.0325, "stackexchange": 1.5353, "wikipedia": 1.6297, "arxiv": 1.3560, "c4": 2.0328,
    },
    "sheared-llama-1.3b": {
        "commoncrawl": 1.9643, "github": 0.7459, "books": 2.1393, "stackexchange": 1.6117, "wikipedia": 1.7590, "arxiv": 1.4449, "c4": 2.1251,
    },
}  # fmt: skip


def losses(
    wanted: str | Mapping[str, float], domains: list[str], like: Mapping[str, str | None]
) -> dict[str, float] | None:
    """Reference loss of each domain; None for `dense`, which is measured when training begins.

    Raises:
        InputError: a domain without a reference.
    """
    if wanted == "dense":
        return None
    if isinstance(wanted, str):
        named = {name: like.get(name) for name in domains}
        prior.counterparts(named, f"the reference '{wanted}'")
        return {name: NAMED[wanted][str(value)] for name, value in named.items()}
    lacking = sorted(set(domains) - set(wanted))
    if lacking:
        raise InputError(f"mixture.reference.{lacking[0]}: no reference loss for this domain")
    return {name: float(wanted[name]) for name in domains}
