"""Packages beyond the core install that a configuration needs: told before the run, not hours later in the job that imports them."""

import importlib.util
from collections.abc import Iterator

from moesaic.config import variant_config
from moesaic.schema import Config

MODULES = {"deepspeed": "deepspeed", "lora": "peft", "science": "astropy"}
"""Extra -> what it installs."""


def needed(config: Config) -> dict[str, str]:
    """Extra -> the key that asks for it."""
    found: dict[str, str] = {}
    for variant in config.variants:
        own = variant_config(config, variant)
        for stage in own.stages:
            settings = getattr(own, stage, None)
            engine, adapter = getattr(settings, "engine", None), getattr(settings, "adapter", None)
            if engine is not None and engine.kind == "deepspeed":
                found.setdefault("deepspeed", f"{stage}.engine.kind: deepspeed")
            if adapter is not None and adapter.method == "lora":
                found.setdefault("lora", f"{stage}.adapter.method: lora")
    if "science" in config.evaluate.suites:
        found["science"] = "evaluate.suites: science"
    return found


def missing(config: Config) -> Iterator[str]:
    """One line for each extra that is not installed here. Jobs may run in another environment, so this is no error."""
    for extra, key in needed(config).items():
        if importlib.util.find_spec(MODULES[extra]) is None:
            yield (
                f"{key} needs {MODULES[extra]}, which is not installed here: in the clone, "
                f"pip install -c envs/cpu.txt '.[{extra}]' (a cluster with GPUs: -c envs/cuda.txt)"
            )
