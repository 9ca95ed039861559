"""Folders that variants with equal settings share: caches of a teacher's likeliest tokens, and a teacher's answers."""

from pathlib import Path

from moesaic.config import digest, variant_config
from moesaic.schema import Config
from moesaic.settings import compared, offline, on_pairs, sampled, teacher_settings, text_settings


def teacher_folder(config: Config, variant: str, stage: str) -> Path:
    """Folder of the cache that a variant's stage trains on. Equal settings share one, and the dense parent's is shared by all variants."""
    settings = teacher_settings(config, stage, variant)
    source = "tokens" if settings["data"] == "text" else "chat"
    owner = "dense" if settings["teacher"] == "dense" else variant
    return Path("results") / owner / "teacher" / f"{source}-top{settings['top']}-{digest(settings)[:8]}"


def caches(config: Config) -> dict[tuple[str, str], tuple[str, str]]:
    """Every cache of the run, (owner, name) -> a (variant, stage) that trains on it."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for variant in config.variants:
        own = variant_config(config, variant)
        for stage in config.stages:
            if stage in ("pretrain", "distill") and offline(own, stage):
                root = teacher_folder(config, variant, stage)
                found.setdefault((root.parts[-3], root.name), (variant, stage))
    return found


def text_folder(config: Config, variant: str) -> Path:
    """Folder of the teacher's answers that a variant's distillation reads, one folder per shard; shared as caches of offline teachers are."""
    settings = text_settings(config, variant)
    owner = "dense" if settings["teacher"] == "dense" else variant
    shards = variant_config(config, variant).distill.samples.shards
    return Path("results") / owner / "teacher_text" / digest(compared(settings) | {"shards": shards})[:12]


def texts(config: Config) -> dict[tuple[str, str], str]:
    """All answers of teachers of the run, (owner, name) -> a variant that reads them."""
    found: dict[tuple[str, str], str] = {}
    for variant in config.variants:
        own = variant_config(config, variant)
        reads = on_pairs(own) or own.distill.samples.text != "student"
        if "distill" in config.stages and sampled(own) and reads:
            root = text_folder(config, variant)
            found.setdefault((root.parts[-3], root.name), variant)
    return found
