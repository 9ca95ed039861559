"""Cut out of the configuration what each step depends on.

A step sees only its own settings (a plain, JSON-able dict), so that a changed key reruns that step and what is below it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic import contradictions
from moesaic.config import VARIANT_KEYS, flatten, variant_config
from moesaic.errors import InputError
from moesaic.evaluate import presets
from moesaic.preference import rubric
from moesaic.project import shipped
from moesaic.schema import Config
from moesaic.schema.evaluate import Evaluate, Instructions
from moesaic.schema.preference import Preference, Rubric, Sampling
from moesaic.schema.samples import Samples
from moesaic.schema.teaching import PAIR_LOSSES
from moesaic.train import zero

PAIR_KEYS = ("kinds", "items", "pairs", "sampling", "rubric", "score_batch")
"""Keys of `preference` that only the steps before its training read."""
TOLD_KEYS = ("name", "license", "shape")
"""Keys of `model` that say what the parent is to cards and plans; no step reads them."""
SAMPLE_KEYS = ("samples", "rounds", "pairs", "score_batch", "validation", "epochs")
"""Keys of `distill` that are read only where its data is samples."""
HOUSEKEEPING = ("engine", "save_every", "keep_checkpoints", "keep_every", "log_samples", "validate_every")
"""Keys of a training stage that change how it runs and not what it computes: a checkpoint may be taken up with others, and a finished stage is not run again."""
ALONE = ("shards", "instructions", "blocks", "conversations", "pictures", "judge")
"""Keys of evaluate that its shards do not depend on."""
AT_ONCE = {
    name: {key: getattr(section, key) for key in keys}
    for name, section, keys in (
        ("sampling", Sampling(), ("batch",)),
        ("rubric", Rubric(), ("batch", "part")),
        ("samples", Samples(), ("batch",)),
        ("instructions", Instructions(), ("batch", "part")),
        ("evaluate", Evaluate(), ("batch",)),
    )
}
"""Section -> its keys that say how much is done at once and change nothing of the answers, with their defaults. `offline.batch` is none of them: the
tail is drawn batch by batch; nor is the `part` of what is sampled in shards: it says which questions are a shard's."""


def step_settings(config: Config, step: str, variant: str | None = None) -> dict[str, Any]:
    """What a step depends on, and nothing else.

    Steps: dense, documents, tokens, images, chat, tasks, temporal, science, reliability (shared), construct, pretrain, tune, sample, rate, preference, student_text,
    pair_scores, distill (per variant), evaluate_part, evaluate, report.
    """
    if variant is not None:
        config = variant_config(config, variant)
    raw = config.model_dump(mode="json")
    data, seed = raw["data"], raw["seed"]
    like = {name: domain["like"] for name, domain in data["domains"].items()}
    held_out = sorted(name for name, domain in data["domains"].items() if domain["held_out"])
    match step:
        case "dense":
            model = {key: value for key, value in raw["model"].items() if key not in TOLD_KEYS}
            return {"model": model} | _image_tokens(data["images"], seed)
        case "documents":
            domains = {name: {"sources": domain["sources"]} for name, domain in data["domains"].items()}
            # A text that two domains have stays in the first one; what compares settings sorts their keys.
            order = {"order": list(domains)} if list(domains) != sorted(domains) else {}
            return {
                "domains": domains,
                **order,
                "clean": data["clean"],
                "validation": data["validation"],
                "seed": seed,
            }
        case "tokens":
            return {key: data[key] for key in ("block", "max_train_tokens", "max_validation_tokens")}
        case "images":
            if data["images"] is None:
                raise InputError("data.images is null: there are no pictures; {} takes the defaults")
            return {"images": data["images"], "seed": seed}
        case "chat":
            # Left out where it is empty: a project from before the key has nothing to do again.
            chosen = [
                {k: v for k, v in item.items() if k != "where" or v} for item in data["chat"]["sources"]
            ]
            own = {"chat": data["chat"] | {"sources": chosen}, "seed": seed}
            if data["reliability"] is None:
                return own
            from moesaic.evaluate.reliability import asked as tested  # which imports the steps

            return own | tested.settings(data["reliability"])
        case "tasks":
            asked = presets.expand(raw["evaluate"])
            return {"tasks": asked["tasks"], "include_path": asked["include_path"]}
        case "temporal":
            if data["temporal"] is None:
                raise InputError(
                    "data.temporal is null: no questions about time are asked for; {} takes the defaults"
                )
            return {"temporal": data["temporal"], "seed": seed}
        case "science":
            if data["science"] is None:
                raise InputError(
                    "data.science is null: no science questions are asked for; {} takes the defaults"
                )
            return {"science": data["science"]}
        case "reliability":
            if data["reliability"] is None:
                raise InputError(
                    "data.reliability is null: no reliability sets are asked for; {} takes the defaults"
                )
            return {"reliability": data["reliability"]}
        case "construct":
            return {"experts": raw["experts"], "held_out": held_out, "seed": seed}
        case "pretrain":
            return {
                "pretrain": _training(config, "pretrain", raw["pretrain"]),
                "like": like,
                "held_out": held_out,
                "seed": seed,
            }
        case "tune":
            return {"tune": _training(config, "tune", raw["tune"]), "seed": seed}
        case "sample":
            own = raw["preference"]
            sampling = {key: value for key, value in own["sampling"].items() if key != "shards"}
            return {
                "preference": {"sampling": sampling, "kinds": own["kinds"], "items": own["items"]},
                "seed": seed,
            }
        case "rate":
            own = raw["preference"]
            kept = {key: own[key] for key in ("pairs", "score_batch")}
            rubric = own["rubric"] | {"text": _rubric(own["rubric"]["template"])}
            return {
                "preference": kept | ({"rubric": rubric} if own["pairs"] == "rubric" else {}),
                "seed": seed,
            }
        case "preference":
            others = (*PAIR_KEYS, "rounds", "reference")
            own = {
                key: value
                for key, value in _training(config, "preference", raw["preference"]).items()
                if key not in others
            }
            return {"preference": own, "seed": seed}
        case "student_text":
            return {"samples": _sampling(raw), "seed": seed}
        case "pair_scores":
            return {"score_batch": raw["distill"]["score_batch"]}
        case "distill" if raw["distill"]["data"] == "samples":
            own = _training(config, "distill", raw["distill"])
            kept = {key: value for key, value in own.items() if key not in ("rounds", "score_batch", "pairs")}
            kept |= {"samples": {"text": own["samples"]["text"]}}
            if not on_pairs(config):
                return {"distill": kept, "seed": seed}
            corpus = {"held_out": held_out} if own["pairs"]["corpus"] else {}
            return {"distill": kept | {"pairs": own["pairs"]}, "seed": seed, **corpus}
        case "distill":
            own = {key: value for key, value in raw["distill"].items() if key not in SAMPLE_KEYS}
            extra = {"like": like, "held_out": held_out} if own["data"] == "text" else {}
            return {"distill": _training(config, "distill", own), "seed": seed, **extra}
        case "evaluate":
            asked = presets.expand(raw["evaluate"])
            del asked["shards"]
            return {"evaluate": asked, "held_out": held_out, "seed": seed}
        case "evaluate_part":
            asked = presets.expand(raw["evaluate"])
            return {
                "evaluate": {key: value for key, value in asked.items() if key not in ALONE},
                "seed": seed,
            }
        case "report":
            return {
                "name": raw["name"],
                "stages": raw["stages"],
                "variants": list(raw["variants"]),
                "held_out": held_out,
                "differ": differing(config),
            }
    raise ValueError(f"unknown step {step}")


def differing(config: Config) -> dict[str, dict[str, Any]]:
    """Key -> its value in each variant, of what the variants do not have in common in the construction and the stages; a section that one lacks is null."""
    sections = dict.fromkeys(["experts", *(stage for stage in config.stages if stage != "construct")])
    own = [
        variant_config(config, name).model_dump(mode="json", include=set(sections))
        for name in config.variants
    ]
    flat = [flatten({name: item[name] for name in sections}, ".") for item in own]
    keys = dict.fromkeys(key for item in flat for key in item)
    found = {key: [item.get(key) for item in flat] for key in keys}
    return {
        key: dict(zip(config.variants, values, strict=True))
        for key, values in found.items()
        if any(value != values[0] for value in values)
    }


def _image_tokens(images: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """What the parent's vocabulary depends on; nothing without pictures."""
    return {"images": {"codes": images["codes"], "grid": images["grid"]}, "seed": seed} if images else {}


def _rubric(template: str | None) -> str:
    """The critic's texts themselves, so that an edited file counts as a changed key. Raises InputError when they are not there, or not whole."""
    path = Path(template) if template else Path(__file__).parent / "preference" / "rubric.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"preference.rubric.template: {path}: cannot be read ({error})") from error
    rubric.load(text, str(path))
    return text


def teacher_settings(config: Config, stage: str, variant: str) -> dict[str, Any]:
    """What the cache of an offline teacher depends on besides the teacher and the data: neither the loss nor the student.

    Args:
        stage: pretrain or distill, which trains on the cache.

    Raises:
        InputError: the stage has no offline teacher.
    """
    raw = variant_config(config, variant).model_dump(mode="json")
    own = raw[stage]
    if own["offline"] is None or own["teacher"] is None:
        raise InputError(
            f"{stage}.offline: the stage has no offline teacher; set it, for example to {{top: 64}}"
        )
    text = stage == "pretrain" or own["data"] == "text"
    found = {
        "top": own["offline"]["top"],
        "tail": own["offline"]["tail"],
        "precision": own["offline"]["precision"],
        "shard_rows": own["offline"]["shard_rows"],
        "max_rows": own["offline"]["max_rows"],
        "batch": own["offline"]["batch"],
        "temperature": own["temperature"],
        "teacher": own["teacher"],
        "data": "text" if text else "chat",
        "seed": raw["seed"],
    }
    if own["teacher"] == "moe":
        found |= {"teacher_experts": own["teacher_experts"], "teacher_scale": own["teacher_scale"]}
    if text:
        held_out = sorted(name for name, domain in raw["data"]["domains"].items() if domain["held_out"])
        found |= {"document_mask": own["document_mask"], "held_out": held_out}
    return found


def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether a step, begun or finished, is the one that the configuration asks for: its settings without HOUSEKEEPING, and with AT_ONCE as
    if never set.
    """
    found = dict(settings)
    for key in (*VARIANT_KEYS, "evaluate"):
        if isinstance(own := found.get(key), Mapping):
            left_out = HOUSEKEEPING if key in VARIANT_KEYS else ()
            found[key] = _at_once({name: value for name, value in own.items() if name not in left_out})
    return _at_once(found)


def _at_once(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section with the defaults of what changes nothing, so that a project that never set it compares as before the rule."""
    found = dict(section)
    for name, defaults in AT_ONCE.items():
        if isinstance(own := found.get(name), Mapping):
            found[name] = {key: defaults.get(key, value) for key, value in own.items()}
    if "score_batch" in found:
        found["score_batch"] = Preference().score_batch
    return found


def sampled(config: Config) -> bool:
    """True where distillation trains on sampled answers. Args: config: a variant's."""
    return config.distill.data == "samples"


def offline(config: Config, stage: str) -> bool:
    """True where a stage trains on a cache of its teacher. Args: config: a variant's."""
    training: Any = getattr(config, stage)
    return getattr(training, "offline", None) is not None and training.teacher is not None


def on_pairs(config: Config) -> bool:
    """True where distillation compares pairs of sampled answers, which have to be scored. Args: config: a variant's."""
    return config.distill.loss in PAIR_LOSSES


def text_settings(config: Config, variant: str) -> dict[str, Any]:
    """What the teacher's answers depend on besides the teacher and the questions: neither the loss nor the student nor the round."""
    raw = variant_config(config, variant).model_dump(mode="json")
    return {"samples": _sampling(raw), "teacher": raw["distill"]["teacher"], "seed": raw["seed"]}


def _sampling(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw["distill"]["samples"].items() if key not in ("shards", "text")}


def _training(config: Config, step: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A training stage's settings, with the content of its DeepSpeed file.

    Raises:
        InputError: the file is missing, not JSON, without a ZeRO stage of 1, 2 or 3, or asks for what the engine does not do.
    """
    engine = settings["engine"]
    if engine["experts"] == "auto":  # left out: a project from before the key has nothing to do again
        engine = {key: value for key, value in engine.items() if key != "experts"}
        settings = settings | {"engine": engine}
    if engine["kind"] != "deepspeed":
        return settings
    key = f"{step}.engine.deepspeed"
    path = shipped.find("deepspeed", engine["deepspeed"], key)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        stage = found["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: {path}: cannot be read, not JSON, or without zero_optimization.stage ({error}); shipped: {', '.join(shipped.names('deepspeed'))}"
        ) from error
    if stage not in (1, 2, 3):
        raise InputError(f"{key}: {path}: zero_optimization.stage is {stage}; take 1, 2 or 3")
    try:  # what the engine would find when the stage begins
        zero.resolve(found, 1, 1, 1, settings["optimizer"]["clip"], 1, bf16=True, cuda=True)
        if settings["router"]["noise"] != "none" or settings["router"]["learn_scale"]:
            zero.check_routers(stage)
        if contradictions.skipping(config, step):
            zero.check_skipping(stage)
    except InputError as error:
        raise InputError(f"{step}.{error} ({path})") from None
    return settings | {"engine": engine | {"json": found}}
