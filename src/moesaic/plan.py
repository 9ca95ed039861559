"""What a configuration will cost, before anything is submitted: parameters, memory of a GPU, tokens, FLOPs, GPU-hours, money.

Counts come from the real classes without weights (`meta` device). Activations are not guessed from a formula: one decoder layer of the real widths
is run on a few tokens, and what autograd keeps for the backward pass is counted and scaled to the micro-batch.

    moesaic plan config/config.yaml --gpu H100 --gpus 8 --price 2.5
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moesaic.config import step_settings, teacher_settings, variant_config
from moesaic.distill import cache
from moesaic.errors import InputError
from moesaic.experts import sizes
from moesaic.flow import paths
from moesaic.model import depth, families, size
from moesaic.model.depth import skip
from moesaic.schema import Config
from moesaic.train import hardware, memory
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
    """For as many tokens as the stage reads; less when rows are read more than once."""


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


def parent_config(config: Config) -> Any:
    """The dense parent's configuration: from the shape in the configuration, the finished `dense` step, its folder, or the hub.

    Raises:
        InputError: none of them is there.
    """
    from transformers import AutoConfig, LlamaConfig

    done, at = paths.folder("dense") / "model", config.model.at
    if config.model.shape is not None:
        dtype = getattr(torch, config.model.dtype)
        return LlamaConfig(**config.model.shape, dtype=dtype)
    if (done / "config.json").is_file():
        return AutoConfig.from_pretrained(str(done), local_files_only=True)
    if at.kind == "folder" and (Path(at.path) / "config.json").is_file():
        return AutoConfig.from_pretrained(at.path, local_files_only=True)
    if at.kind == "hub":
        try:
            return AutoConfig.from_pretrained(at.repository, revision=at.revision)
        except OSError as error:
            raise InputError(
                f"model.at: the hub does not answer for {at.repository} ({str(error).splitlines()[0]}); give model.shape to plan without it"
            ) from error
    raise InputError(
        "model: the parent's shape is not known yet; run the dense step first (snakemake results/dense/manifest.json), or give model.shape"
    )


def make(config: Config, machine: Hardware) -> list[Plan]:
    """Plan every variant.

    Raises:
        InputError: sizes that do not fit the parent, a parent that is not known.
    """
    dense_config = parent_config(config)
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
        stages = []
        for name in config.stages:
            if name in ("pretrain", "tune"):
                stage = step_settings(config, name, variant)[name]
                length = config.data.block if name == "pretrain" else config.data.chat.max_tokens
                deep = stage.get("depth")
                trained = deepened(moe, dense, deep) if deep else moe
                planned = _stage(name, stage, trained, dense, length, machine)
                planned.layers = trained.config.num_hidden_layers if deep else None
                stages.append(planned)
        plans.append(
            Plan(
                variant,
                type(moe).__name__,
                reasons[family.name],
                size.count(dense),
                size.count(moe),
                stages,
                _caches(config, variant, dense_config.vocab_size),
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


def _caches(config: Config, variant: str, vocabulary: int) -> list[Cache]:
    found = []
    for stage in config.stages:
        if stage not in ("pretrain", "distill") or not paths.offline(variant_config(config, variant), stage):
            continue
        own = teacher_settings(config, stage, variant)
        training = step_settings(config, stage, variant)[stage]
        length = config.data.block if own["data"] == "text" else config.data.chat.max_tokens
        each = cache.bytes_per_token(vocabulary, own["top"], own["tail"], own["precision"])
        total = each * training["steps"] * training["batch"] * length / BILLION
        found.append(Cache(stage, own["top"], own["tail"], each, total))
    return found


def _stage(
    name: str, settings: Mapping[str, Any], moe: Any, dense: Any, length: int, machine: Hardware
) -> Stage:
    tokens = settings["steps"] * settings["batch"] * length
    if settings["tokens"] is not None:
        tokens = min(tokens, settings["tokens"])
    flops = float(tokens) * flops_per_token(moe, length, training=True)
    if settings.get("teacher") == "dense" and settings["offline"] is None:
        flops += float(tokens) * flops_per_token(dense, length, training=False)
    stage = Stage(name, settings["steps"], tokens, flops)
    stage.memory_gb = memory.memory(settings, moe, dense, length, machine.gpus)
    return stage


def flops_per_token(model: Any, length: int, training: bool) -> float:
    """Matrix products of the active weights, and of the attention scores over half of the context on average."""
    counted, config = size.count(model), model.config
    idle = counted.active - counted.running(depth.shares(model))
    heads = config.num_attention_heads * families.base.head_dim(config)
    scores = 2 * 2 * config.num_hidden_layers * heads * length / 2
    return counted.flops_per_token(training) - (6 if training else 2) * idle + (3 if training else 1) * scores


def text(plans: list[Plan], machine: Hardware) -> str:
    """The plan as a page of text."""
    lines = []
    for plan in plans:
        lines += [
            f"variant {plan.variant}: {plan.architecture} ({plan.why})",
            f"  parameters    {_count(plan.moe.total)} total, {_count(plan.moe.active)} active for a token; dense parent {_count(plan.dense.total)}",
        ]
        for stage in plan.stages:
            hours = stage.hours(machine)
            money = f", {hours * machine.price:,.0f} at {machine.price:g} a GPU-hour" if machine.price else ""
            most = GPU_MEMORY_GB[machine.gpu]
            fits = (
                ""
                if stage.memory_gb["total"] <= most
                else f"  MORE THAN THE {most:.0f} GB OF ONE {machine.gpu}"
            )
            parts = ", ".join(
                f"{name} {value:.1f}"
                for name, value in stage.memory_gb.items()
                if name != "total" and value >= 0.05
            )
            lines += [
                f"  {stage.name}",
                f"    tokens      {stage.tokens:,} in {stage.steps:,} steps of {stage.tokens // max(1, stage.steps):,}",
                f"    FLOPs       {stage.flops:.3g}, of active weights and attention{_layers(stage)}",
                f"    time        {hours:,.1f} GPU-hours on {machine.gpu} at {machine.mfu:.0%} of its peak"
                f" = {hours / machine.gpus:,.1f} h on {machine.gpus}{money}",
                f"    memory      {stage.memory_gb['total']:.1f} GB per GPU ({parts}){fits}",
            ]
        for item in plan.caches:
            lines += [
                f"  teacher cache of {item.stage}",
                f"    on disk     {item.bytes_per_token} bytes per token before compression ({item.top} likeliest, {item.tail} drawn)"
                f" = at most {item.gigabytes:,.2f} GB for the tokens of the stage",
            ]
    return "\n".join(lines) + "\n"


def _layers(stage: Stage) -> str:
    return (
        ""
        if stage.layers is None
        else f", {stage.layers} layers; the FFNs that run for labels only are not in it"
    )


def _count(number: int) -> str:
    return f"{number / BILLION:.2f}B" if number >= 5e8 else f"{number / 1e6:.1f}M"
