"""The end of a training stage: the model in the dtype that it came in, and the facts of its manifest."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.data.sampler import Sampler
from moesaic.flow import files
from moesaic.flow.step import Result
from moesaic.model import depth, load, size
from moesaic.model.adapters import beside
from moesaic.train import adapt, hardware
from moesaic.train.engine import Engine
from moesaic.train.job import Job

log = logging.getLogger("moesaic.train")


def save(
    job: Job,
    engine: Engine,
    sampler: Sampler,
    weights: Mapping[str, Tensor],
    counted: size.Size,
    loss: float,
    done: int,
    seen: int,
    speed: float,
) -> Result:
    """Write `model/` and say what the stage was. Args: weights: of all ranks. done, seen: steps and tokens. speed: tokens a second."""
    model: Any = job.trainee.model
    state = {
        name: tensor.to(engine.dtypes.get(name, tensor.dtype))
        for name, tensor in weights.items()
        if not name.startswith("policy.")
    }
    adapter = adapt.finish(model, state, job)
    if adapter is not None:
        state, counted = adapter.state, adapter.size
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state[_input_name(model)]
    with files.atomic_path(job.context.out / "model") as folder:
        depth.save(model, folder, state)
        load.note_dtype(folder, next(iter(engine.dtypes.values())))
        load.load_tokenizer(job.tokenizer_from).save_pretrained(folder)
    epochs = sampler.epochs()
    for name, value in epochs.items():
        if value > 1:
            log.info("%s: domain %s was gone through %.1f times", job.context.name, name, value)
    result = {
        "architecture": model.config.architectures[0],
        "vocab_size": model.config.vocab_size,
        "steps": done,
        "tokens": seen,
        "final_loss": round(loss, 6) if math.isfinite(loss) else None,
        "drawn": dict(sampler.drawn),
        "epochs": {name: round(value, 4) for name, value in epochs.items()},
        "parameters": counted.total,
        "active_parameters": counted.running(depth.shares(model)),
    }
    if adapter is not None:
        result["adapter"] = adapter.facts
    deep = depth.facts(model)
    if deep:
        result["depth"] = deep
    measured = {
        "tokens_per_second": speed,
        "ranks": engine.world,
        "device": str(engine.device),
        "memory_gb": hardware.memory_gb(),
    }
    return Result(["model"] if adapter is None else ["model", beside.FOLDER], result, measured)


def _input_name(model: Any) -> str:
    """Name of the token embeddings' weight."""
    wanted = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is wanted)
