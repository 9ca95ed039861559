"""What a configuration asks for that could only fail hours later, when a stage begins: names that nothing has, settings that exclude each other."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moesaic.evaluate.temporal.tasks import TASKS
from moesaic.explain import nearest
from moesaic.schema import IMAGES, Config, Depth, Pretrain
from moesaic.schema.samples import OWN
from moesaic.schema.teaching import PAIR_LOSSES, TAUGHT

SLIMPAJAMA = ("llama", "sheared-llama")
"""Presets of mixture.weights that are for domains of text."""
OBSERVING = ("dynamic", "dynamic-paper", "ref-loss")
"""Mixtures that compare validation losses with a reference."""
BOUNDED = ("dynamic", "gate-load-robust")
"""Mixtures that keep weights between floor and ceiling."""
UPDATED = (*OBSERVING, "sentence-embedding", "gate-load", "gate-load-robust")
"""Mixtures whose weights change every so many steps."""
ROUTER_KEYS = ("noise", "capacity", "learn_scale", "frozen", "expert_dropout")
"""Keys of a stage's `router` that do nothing to a model without experts."""


def find(config: Config) -> Iterator[str]:
    """One line for each, beginning with the key. Args: config: a variant's (config.variant_config)."""
    domains = [name for name, domain in config.data.domains.items() if not domain.held_out]
    sources = [source.name for source in config.data.chat.sources] + [IMAGES] * (
        config.data.images is not None
    )
    sets = list(dict.fromkeys(sources))  # several sources of one name are one set
    like = {name: config.data.domains[name].like for name in domains}
    if not domains:
        yield "data.domains: all of them are held_out, and construct needs text for calibration; leave held_out away from one"
    for stage in config.stages:
        if stage == "construct":
            continue
        own: Any = getattr(config, stage)
        dense = _dense(config, stage)
        yield from _routers(stage, own, config.experts, dense, skipping(config, stage))
        on_text = stage == "pretrain" or getattr(own, "data", None) == "text"
        if not on_text and stage != "preference" and not sets:
            yield f"stages: {stage} trains on conversations, and data.chat.sources is empty; add a source, or leave {stage} out of stages"
        names = domains if on_text else _drawn(stage, own, sets)
        known = [*config.data.domains] if on_text else names
        yield from _mixture(f"{stage}.mixture", own.mixture, names, known, like if on_text else None)
        # not where the number of samples says how many steps there are
        if (
            own.mixture.method in UPDATED
            and not getattr(own, "epochs", None)
            and 0 < own.steps <= own.mixture.every
        ):
            yield (
                f"{stage}.mixture.every: {own.mixture.every}, and {stage} has {own.steps} steps, so that {own.mixture.method} never changes its weights; "
                "give fewer, or method: static"
            )
        if not on_text and own.mixture.method in OBSERVING and not config.data.chat.validation:
            yield f"data.chat.validation: 0, and {stage}.mixture.method {own.mixture.method} compares losses on validation rows; keep some, or take another method"
        if getattr(own, "teacher", None) == "dense" and own.teacher_experts != "top-k":
            yield f"{stage}.teacher_experts: {own.teacher_experts} is for a teacher with experts, the dense parent has none; leave it out"
        if student_text := getattr(own, "student_text", None):
            yield from _named(f"{stage}.student_text", student_text, domains if on_text else sets)
    yield from _questions(config)
    if "distill" in config.stages:
        student = config.distill.student
        if student.of == "moe" and _dense(config, "distill"):
            yield from _of_dense(config.distill)
        if student.of == "moe" and student.per_token and student.per_token > config.experts.per_token:
            yield (
                f"distill.student.per_token: {student.per_token} is more than experts.per_token ({config.experts.per_token}); "
                "a student runs fewer experts, not more"
            )
        if config.distill.data == "samples":
            yield from _named("distill.samples.sources", config.distill.samples.sources, sets)
            yield from _twice("distill.samples.sources", config.distill.samples.sources)
    if config.evaluate.instructions is not None:
        yield from _named("evaluate.instructions.sources", config.evaluate.instructions.sources, sets)
        yield from _twice("evaluate.instructions.sources", config.evaluate.instructions.sources)
        if not sets:
            yield "evaluate.instructions: asks the questions of data.chat.sources, which is empty; add a source, or leave it out"
        elif not config.data.chat.validation:
            yield "data.chat.validation: 0, and evaluate.instructions asks the questions of the validation side; keep some, or leave it out"
    if config.evaluate.judge is not None and config.data.images is None:
        yield "evaluate.judge: scores the pictures that a model draws, and data.images is null; give pictures, or leave it out"
    if config.evaluate.reliability.dola is not None and "reliability" not in config.evaluate.suites:
        yield "evaluate.reliability.dola: decodes the reliability suite, which evaluate.suites does not name; add it, or leave dola out"


def _dense(config: Config, stage: str) -> bool:
    """Whether the model that a stage trains has no experts."""
    if stage == "distill" and config.distill.student.of == "dense":
        return True
    own = _depth(config, stage)
    return own is not None and own.of == "dense"


def skipping(config: Config, stage: str) -> bool:
    """Whether the model that a stage trains has depth routers."""
    if stage == "distill" and config.distill.student.of == "dense":
        return False
    own = _depth(config, stage)
    return own is not None and own.skip is not None and own.skip.method == "route"


def _depth(config: Config, stage: str) -> Depth | None:
    """What tuning has made of the depth of the model that a stage trains; None before it."""
    stages: list[str] = list(config.stages)
    before = stages[: stages.index(stage) + 1] if stage in stages else [stage]
    return config.tune.depth if "tune" in before else None


def untaught(variants: Iterable[Config]) -> Iterator[str]:
    """Keys that only a teacher gives a meaning, where no variant has one; variants with and without a teacher may share the rest of their section."""
    own = [config.pretrain for config in variants]
    if any(pretrain.teacher is not None for pretrain in own):
        return
    untouched = Pretrain()
    for key in TAUGHT:
        if any(getattr(pretrain, key) != getattr(untouched, key) for pretrain in own):
            yield f"pretrain: {key}: has no effect without a teacher; set teacher: dense, or leave it out"


def _of_dense(distill: Any) -> Iterator[str]:
    """Of a student that starts from a model without experts: tune.depth.of dense."""
    if distill.student.per_token is not None:
        yield "distill.student.per_token: tune.depth.of is dense, and its model has no experts; write student: {per_token: null}"
    if distill.teacher == "moe" and distill.teacher_experts != "top-k":
        yield f"distill.teacher_experts: {distill.teacher_experts}: tune.depth.of is dense, and its model has no experts; leave it out"


def _drawn(stage: str, own: Any, sets: list[str]) -> list[str]:
    """What a stage on conversations, questions or samples draws from."""
    if stage == "preference":
        return list(own.kinds)
    if getattr(own, "data", None) != "samples":
        return sets
    asked = own.samples.sources or sets
    text = "teacher" if own.loss in PAIR_LOSSES else own.samples.text
    return [*(asked if text != "student" else ()), *(name + OWN for name in asked if text != "teacher")]


def _questions(config: Config) -> Iterator[str]:
    temporal = config.data.temporal
    if "preference" not in config.stages or temporal is None:
        return
    if not temporal.train:
        yield "data.temporal.train: 0, and preference samples answers to the training questions; give some"
    if isinstance(temporal.tasks, list):
        there = {TASKS[name].kind for name in temporal.tasks if name in TASKS}
        kinds = config.preference.kinds
        lacking = [kind for kind in kinds if there and kind not in there]
        if "kinds" in config.preference.model_fields_set or len(lacking) == len(kinds):
            for kind in lacking:
                yield f"preference.kinds: no task of data.temporal.tasks is {kind}; add one, or leave {kind} out"


def _mixture(
    key: str, own: Any, names: list[str], known: list[str], like: Mapping[str, str | None] | None
) -> Iterator[str]:
    """Args: names: what is drawn from. known: those and what is held out. like: SlimPajama's domain of each, for domains of text."""
    observes = own.method in OBSERVING
    published = isinstance(own.reference, str) and own.reference != "dense"
    for what, asked in (("weights", own.weights in SLIMPAJAMA), ("reference", observes and published)):
        if not asked:
            continue
        value = getattr(own, what)
        if like is None:
            yield f"{key}.{what}: {value} is for domains of text, not for instruction sets; take {'uniform, size' if what == 'weights' else 'dense'} or numbers"
        else:
            for name in names:
                if like[name] is None:
                    yield f"data.domains.{name}.like: {key}.{what} {value} needs each trained domain's SlimPajama counterpart; set it"
    if observes and isinstance(own.reference, dict):
        yield from _named(f"{key}.reference", own.reference, known)
        for name in names:
            if name not in own.reference:
                yield f"{key}.reference.{name}: no reference loss for it; give one, or take dense"
    yield from _weights(f"{key}.weights", own.weights, names)
    used = [name for name in names if not isinstance(own.weights, dict) or own.weights.get(name, 0) > 0]
    if own.method in BOUNDED and used:
        if own.floor * len(used) > 1 + 1e-9:
            yield f"{key}.floor: {own.floor} for each of {len(used)} is more than 1; take at most {1 / len(used):.3f}"
        if own.ceiling * len(used) < 1 - 1e-9:
            yield (
                f"{key}.ceiling: {own.ceiling} for each of {len(used)} ({', '.join(used)}) is less than 1; take at least {1 / len(used):.3f}"
                + (", or method static: there is nothing to mix" if len(used) == 1 else "")
            )


def _routers(stage: str, own: Any, experts: Any, dense: bool, skipping: bool) -> Iterator[str]:
    """Args: dense: the stage's model has no experts. skipping: it has depth routers, which are routers too."""
    first = own.optimizer.routers_first
    if first and own.router.frozen and not (skipping or own.router.learn_scale):
        yield f"{stage}.optimizer.routers_first: {first} steps in which only the routers are trained, and router.frozen holds them; leave one out"
    if dense:
        keys = {f"router.{name}": getattr(own.router, name) for name in ROUTER_KEYS}
        for name, value in (keys | {"optimizer.routers_first": 0 if skipping else first}).items():
            if value not in (None, False, 0, "none"):
                yield f"{stage}.{name}: {value}: the model of {stage} has no experts; leave it out"
        return
    if own.router.gate != "linear":
        yield f"{stage}.router.gate: {own.router.gate} is for comparisons in scripts, no architecture could hold the result; take linear"
    if own.router.balance == "bias" and experts.family not in ("auto", "glm4_moe"):
        yield f"{stage}.router.balance: {experts.family} has no bias per expert; set experts.family: glm4_moe, or take switch"
    elif own.router.balance == "bias" and experts.family == "auto" and not experts.dense_layers:
        # what auto takes where no layer is left dense
        yield f"{stage}.router.balance: bias needs experts.family: glm4_moe, and auto takes an architecture without a bias per expert; set it, or take switch"


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


def _twice(key: str, names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{key}: {name} is named twice, and its questions would be asked twice; name it once"
        seen.add(name)
