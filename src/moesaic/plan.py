"""What a configuration will cost, before anything is submitted: parameters, memory of a GPU, tokens, FLOPs, GPU-hours, money.

Counts come from the real classes without weights (`meta` device). Activations are not guessed from a formula: one decoder layer of the real widths
is run on a few tokens, and what autograd keeps for the backward pass is counted and scaled to the micro-batch.

    moesaic plan config/config.yaml --gpu H100 --gpus 8 --price 2.5
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from moesaic import plan_parent, plan_sampling
from moesaic.config import variant_config
from moesaic.distill import cache, students
from moesaic.errors import InputError
from moesaic.experts import room, sizes
from moesaic.model import depth, families, size
from moesaic.model.cost import flops_per_token
from moesaic.model.depth import skip
from moesaic.schema import Config
from moesaic.schema.teaching import PAIR_LOSSES, TEXT_LOSSES
from moesaic.settings import offline, sampled, step_settings, teacher_settings
from moesaic.train import adapt, hardware, memory
from moesaic.train.memory import BILLION

GPU_MEMORY_GB = {
    "A100": 80.0,
    "H100": 80.0,
    "H200": 141.0,
    "L40S": 48.0,
    "A10": 24.0,
    "V100": 32.0,
    "B200": 192.0,
}
"""Of the largest common variant, GB (10^9 bytes)."""


@dataclass(frozen=True)
class Hardware:
    """What the run is planned for."""

    gpu: str = "H100"
    gpus: int = 8
    mfu: float = 0.3
    """Share of the peak that is assumed to be reached, of active FLOPs."""
    price: float | None = None
    """Of a GPU-hour."""

    def __post_init__(self) -> None:
        for name in ("gpus", "mfu"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name}: {getattr(self, name)} is not above 0")
        if self.gpu not in hardware.DENSE_BF16_TFLOPS:
            raise InputError(
                f"--gpu: {self.gpu} is not known; known: {', '.join(hardware.DENSE_BF16_TFLOPS)}"
            )


@dataclass
class Stage:
    """Cost of one training stage."""

    name: str
    steps: int
    tokens: int
    flops: float
    memory_gb: dict[str, float] = field(default_factory=dict)
    """Of one GPU, by what it is for; `total` is the peak."""
    layers: int | None = None
    """Decoder layers, of a stage that changes the model's depth."""
    sampling: list[plan_sampling.Sampling] = field(default_factory=list)
    """What is sampled and scored before the training."""
    rounds: int = 1
    """How often all of it is done; steps, tokens and FLOPs are of all rounds."""
    uneven: str = ""
    """Why training would refuse to begin on so many GPUs."""

    def hours(self, machine: Hardware) -> float:
        """GPU-hours at the assumed utilisation."""
        return self.flops / (hardware.DENSE_BF16_TFLOPS[machine.gpu] * 1e12 * machine.mfu) / 3600


@dataclass(frozen=True)
class Cache:
    """What an offline teacher's cache takes on disk, before compression."""

    stage: str
    top: int
    tail: int
    bytes_per_token: int
    gigabytes: float
    """For as many tokens as the stage reads. The cache holds all rows of what it trains on, however many of them that are."""
    flops: float
    """Of the teacher's forward pass over them."""


@dataclass
class Plan:
    """One variant."""

    variant: str
    architecture: str
    why: str
    dense: size.Size
    moe: size.Size
    stages: list[Stage]
    caches: list[Cache] = field(default_factory=list)
    disk: room.Room | None = None
    """Of the construction while it lasts."""


def make(config: Config, machine: Hardware) -> list[Plan]:
    """Plan every variant.

    Raises:
        InputError: sizes that do not fit the parent, a parent that is not known.
    """
    dense_config = plan_parent.shape(config)
    families.check_parent(dense_config)
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        dense = AutoModelForCausalLM.from_config(dense_config)
    plans = []
    for variant in config.variants:
        settings = step_settings(config, "construct", variant)["experts"]
        widths = sizes.sizes(dense_config.intermediate_size, settings)
        shape = sizes.shape(widths, dense_config.num_hidden_layers, settings)
        family, reasons = families.choose(shape, dense_config, settings["family"])
        with torch.device("meta"):
            moe = families.build(family, dense_config, shape)
        stages, before = [], moe
        for name in config.stages:
            if name == "construct":
                continue
            stages.append(_training(variant_config(config, variant), variant, name, before, dense, machine))
            deep = step_settings(config, name, variant)[name].get("depth")
            before = deepened(before, dense, deep) if deep else before
        plans.append(
            Plan(
                variant,
                type(moe).__name__,
                reasons[family.name],
                size.count(dense),
                size.count(moe),
                stages,
                _caches(config, variant, {"dense": dense, "moe": moe}),
                room.needed(
                    moe,
                    sizes.by_layer(settings, dense_config.num_hidden_layers),
                    settings["calibration"]["tokens"],
                    dense_config.hidden_size,
                ),
            )
        )
    return plans


def deepened(moe: Any, dense: Any, settings: Mapping[str, Any]) -> Any:
    """A copy, of no memory, of the model that a stage with depth trains: with its new layers and routers, or without its pruned layers.

    Args:
        settings: schema.Depth as a dict.
    """
    model = copy.deepcopy(dense if settings["of"] == "dense" else moe)
    with torch.device("meta"):
        if settings["expand"] is not None:
            depth.expand.expand(model, settings["expand"])
        own = settings["skip"]
        if own is not None:
            layers = depth.eligible(model, own)
            if own["method"] == "route":
                skip.attach(model, layers)
                for item in skip.layers(model).values():
                    item.share = own["capacity"]
            else:  # which ones is known when they are measured; any count as much
                depth.static.prune(
                    model,
                    depth.static.choose([0.0] * len(model.model.layers), layers, own["capacity"]),
                    own["unit"],
                )
        depth.steer.freeze(model, settings["train"])
    return model


def _caches(config: Config, variant: str, teachers: Mapping[str, Any]) -> list[Cache]:
    found = []
    for stage in config.stages:
        if stage not in ("pretrain", "distill") or not offline(variant_config(config, variant), stage):
            continue
        own = teacher_settings(config, stage, variant)
        training = step_settings(config, stage, variant)[stage]
        length = config.data.block if own["data"] == "text" else config.data.chat.max_tokens
        teacher, tokens = teachers[training["teacher"]], training["steps"] * training["batch"] * length
        tokens = min(tokens, training["tokens"] or tokens)
        each = cache.bytes_per_token(teacher.config.vocab_size, own["top"], own["tail"], own["precision"])
        forward = tokens * flops_per_token(teacher, length, training=False)
        found.append(Cache(stage, own["top"], own["tail"], each, each * tokens / BILLION, forward))
    return found


def _training(own: Config, variant: str, name: str, moe: Any, dense: Any, machine: Hardware) -> Stage:
    """A training stage, with what it samples and scores before. Args: own: the variant's configuration."""
    settings = step_settings(own, name, variant)[name]
    on_text = name == "pretrain" or settings.get("data") == "text"
    length, rows = own.data.block if on_text else own.data.chat.max_tokens, 1
    deep = settings.get("depth")
    trained = deepened(moe, dense, deep) if deep else moe
    if settings.get("adapter"):
        trained = adapt.planned(trained, settings["adapter"])
    parents = {"dense": dense, "moe": moe, None: None}
    teacher = parents[settings.get("teacher")]
    if name == "distill":
        trained = student(moe, dense, settings["student"])
    resident = None if settings.get("offline") else teacher
    rounds, count = 1, None
    pairs = False
    how: Any = None  # of sampling, where a sample is an answer or a pair of them
    if name == "preference":
        pairs, how = settings["loss"] != "sft", own.preference.sampling
        count, rounds = plan_sampling.temporal_questions(own), own.preference.rounds
    elif name == "distill" and sampled(own):
        pairs, how = settings["loss"] in PAIR_LOSSES, own.distill.samples
        count, rounds = plan_sampling.instruction_questions(own), own.distill.rounds
        count = None if count is None else count * how.answers
        resident = None if pairs or settings["loss"] in TEXT_LOSSES else teacher
    if how is not None:
        length, rows = how.max_prompt + how.new_tokens, 2 if pairs else 1
    if settings.get("epochs") is not None and count is not None:
        settings = settings | {"steps": math.ceil(settings["epochs"] * count / settings["batch"])}
    planned = _stage(name, settings, trained, resident, length, machine, rows, rounds)
    planned.layers = trained.config.num_hidden_layers if deep else None
    planned.sampling = plan_sampling.plan(own, name, teacher, trained)
    return planned


def student(moe: Any, dense: Any, settings: Mapping[str, Any]) -> Any:
    """A copy, of no memory, of what distillation trains. Args: settings: schema.Student as a dict."""
    if settings["of"] == "moe":
        return students.make(copy.deepcopy(moe), dict(settings), None)
    from transformers import AutoModelForCausalLM

    shape = copy.deepcopy(dense.config)
    shape.intermediate_size = settings["ffn"] or shape.intermediate_size
    with torch.device("meta"):
        return students.make(AutoModelForCausalLM.from_config(shape), {**settings, "ffn": None}, None)


def _stage(
    name: str, settings: Mapping[str, Any], trained: Any, teacher: Any, length: int, machine: Hardware, rows: int, rounds: int
) -> Stage:  # fmt: skip
    """Args: teacher: that runs beside the student, or None. rows: of a sample (2: a pair)."""
    steps = settings["steps"] * rounds
    tokens = steps * settings["batch"] * length * rows
    if settings["tokens"] is not None:
        steps = min(steps, rounds * math.ceil(settings["tokens"] / (settings["batch"] * length * rows)))
        tokens = min(tokens, settings["tokens"] * rounds)
    flops = float(tokens) * flops_per_token(trained, length, training=True)
    if teacher is not None:
        flops += float(tokens) * flops_per_token(teacher, length, training=False)
    stage = Stage(name, steps, tokens, flops, rounds=rounds)
    stage.memory_gb = memory.memory(settings, trained, teacher, length * rows, machine.gpus)
    if settings["batch"] % (settings["micro_batch"] * machine.gpus):
        stage.uneven = f"{settings['batch']} does not divide by {machine.gpus} GPUs x micro_batch {settings['micro_batch']}"
    return stage
