"""What a configuration asks for that could only fail hours later, when a stage begins: names that nothing has, settings that exclude each other."""

from collections.abc import Iterable, Iterator
from typing import Any

from moesaic.explain import nearest
from moesaic.schema import IMAGES, Config

SLIMPAJAMA = ("llama", "sheared-llama")
"""Presets of mixture.weights that are for domains of text."""


def find(config: Config) -> Iterator[str]:
    """One line for each, beginning with the key. Args: config: a variant's (config.variant_config)."""
    domains = [name for name, domain in config.data.domains.items() if not domain.held_out]
    sets = [source.name for source in config.data.chat.sources] + [IMAGES] * (config.data.images is not None)
    if not domains:
        yield "data.domains: all of them are held_out, and construct needs text for calibration; leave held_out away from one"
    for stage in config.stages:
        if stage == "construct":
            continue
        own: Any = getattr(config, stage)
        yield from _routers(stage, own, config.experts.family)
        on_text = stage == "pretrain" or getattr(own, "data", None) == "text"
        if not on_text and stage != "preference":
            if not sets:
                yield f"stages: {stage} trains on conversations, and data.chat.sources is empty; add a source, or leave {stage} out of stages"
            if own.mixture.weights in SLIMPAJAMA:
                yield f"{stage}.mixture.weights: {own.mixture.weights} is for domains of text, not for instruction sets; take uniform, size or numbers"
        if stage != "preference" and getattr(own, "data", None) != "samples":
            yield from _weights(f"{stage}.mixture.weights", own.mixture.weights, domains if on_text else sets)
        if getattr(own, "teacher", None) == "dense" and own.teacher_experts != "top-k":
            yield f"{stage}.teacher_experts: {own.teacher_experts} is for a teacher with experts, the dense parent has none; leave it out"
        if student_text := getattr(own, "student_text", None):
            yield from _named(f"{stage}.student_text", student_text, domains if on_text else sets)
    if "preference" in config.stages and config.data.temporal and not config.data.temporal.train:
        yield "data.temporal.train: 0, and preference samples answers to the training questions; give some"
    if "distill" in config.stages:
        student = config.distill.student
        if student.of == "moe" and student.per_token and student.per_token > config.experts.per_token:
            yield (
                f"distill.student.per_token: {student.per_token} is more than experts.per_token ({config.experts.per_token}); "
                "a student runs fewer experts, not more"
            )
        if config.distill.data == "samples":
            yield from _named("distill.samples.sources", config.distill.samples.sources, sets)
    if config.evaluate.instructions is not None:
        yield from _named("evaluate.instructions.sources", config.evaluate.instructions.sources, sets)


def _routers(stage: str, own: Any, family: str) -> Iterator[str]:
    if own.router.gate != "linear":
        yield f"{stage}.router.gate: {own.router.gate} is for comparisons in scripts, no architecture could hold the result; take linear"
    if own.router.balance == "bias" and family not in ("auto", "glm4_moe"):
        yield f"{stage}.router.balance: {family} has no bias per expert; set experts.family: glm4_moe, or take switch"


def _weights(key: str, weights: Any, known: list[str]) -> Iterator[str]:
    if not isinstance(weights, dict):
        return
    yield from _named(key, weights, known)
    if known and not any(weights.get(name, 0) for name in known):
        yield f"{key}: all weights are 0; give one above 0"


def _named(key: str, names: Iterable[str], known: list[str]) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{key}: no text or instruction set named '{name}'{nearest(name, known)}; there are: {', '.join(known) or 'none'}"
