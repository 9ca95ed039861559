"""DeepSpeed's JSON template: its "auto" fields, and what ZeRO-3 cannot do here. Without torch, so that a configuration is checked quickly."""

import copy
from collections.abc import Mapping
from typing import Any

from moesaic.errors import InputError


def resolve(
    template: Mapping[str, Any],
    micro_batch: int,
    passes: int,
    world: int,
    clip: float,
    hidden: int,
    bf16: bool,
    cuda: bool,
) -> dict[str, Any]:
    """The template with every "auto" replaced, as transformers does it from its own arguments.

    Raises:
        InputError: an "auto" that has no counterpart here, or expert parallelism (docs/decisions/0005-no-autoep.md).
    """
    if template.get("expert_parallel", {}).get("enabled"):
        raise InputError(
            "engine.deepspeed: expert_parallel: AutoEP puts its own layers in the place of the stock ones, with which balancing, load figures and "
            "checkpoints of this loop do not work; leave it out and shard with ZeRO"
        )
    found = copy.deepcopy(dict(template))
    zero = found["zero_optimization"]
    # what the loop decides is never the template's: batch sizes and clipping come from the stage's settings
    found |= {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": passes,
        "train_batch_size": micro_batch * passes * world,
        "gradient_clipping": clip,
    }
    if found.setdefault("bf16", {"enabled": "auto"}).get("enabled") == "auto":
        found["bf16"]["enabled"] = bf16
    automatic = {
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
        "overlap_comm": cuda,
    }
    for key, value in automatic.items():
        if zero.get(key) == "auto":
            zero[key] = value
    left = [
        f"{name}.{key}"
        for name, part in found.items()
        if isinstance(part, dict)
        for key in part
        if part[key] == "auto"
    ]
    left += [key for key, value in found.items() if value == "auto"]
    if left:
        raise InputError(f"engine.deepspeed: {left[0]}: 'auto' is not known for this key; give a value")
    return found


def check_skipping(stage: int) -> None:
    """For layers that tokens skip: whether a rank calls an FFN depends on its tokens. Raises InputError under ZeRO-3."""
    if stage == 3:
        raise InputError(
            "engine.deepspeed: ZeRO-3 gathers a layer's weights whenever a rank calls it, and ranks differ in the layers that their tokens skip "
            "(depth.skip); take zero1 or zero2, or engine.kind: fsdp"
        )


def check_routers(stage: int) -> None:
    """For routers that have parameters of their own in training. Raises InputError under ZeRO-3."""
    if stage == 3:
        raise InputError(
            "engine.deepspeed: ZeRO-3 cuts up the routers' own parameters (router.noise, router.learn_scale), which are used outside of "
            "their module; take zero1 or zero2, or leave both off"
        )
