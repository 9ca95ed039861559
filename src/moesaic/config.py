"""Load, merge and check the configuration; cut out what each step depends on.

A step sees only its own settings (a plain, JSON-able dict), so that a changed key reruns that step and what is below it.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from moesaic.errors import InputError
from moesaic.evaluate import presets
from moesaic.schema import Config
from moesaic.schema.teaching import PAIR_LOSSES

VARIANT_KEYS = ("experts", "pretrain", "tune", "preference", "distill")
RESERVED_VARIANTS = {"prepare", "dense", "cache", "config"}
PAIR_KEYS = ("kinds", "items", "pairs", "sampling", "rubric", "score_batch")
"""Keys of `preference` that only the steps before its training read."""
TOLD_KEYS = ("name", "license", "shape")
"""Keys of `model` that say what the parent is to cards and plans; no step reads them."""
SAMPLE_KEYS = ("samples", "rounds", "pairs", "score_batch", "validation", "epochs")
"""Keys of `distill` that are read only where its data is samples."""


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file and check it. Raises InputError naming the key, the value and what is allowed."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such configuration file"
            + (
                "; the workflow's onstart writes it, a Snakefile of your own that uses it as a module has to call that (docs/howto/new-project.md)"
                if path.parent.name == "config" and path.suffix == ".json"
                else ""
            )
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected keys and values at the top level")
    return check(merge(raw, overrides or {}), str(path))


def check(raw: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a plain dict, with every variant merged and checked too. One line per error, all errors at once."""
    config = _validate(raw, where)
    for name, changes in config.variants.items():
        if name in RESERVED_VARIANTS or not name.replace("-", "").replace("_", "").isalnum():
            raise InputError(
                f"{where}: variants.{name}: a variant name may hold letters, digits, - and _ and not be one of {sorted(RESERVED_VARIANTS)}"
            )
        for key in changes:
            if key not in VARIANT_KEYS:
                raise InputError(
                    f"{where}: variants.{name}.{key}: a variant may override {', '.join(VARIANT_KEYS)}{_nearest(key, VARIANT_KEYS)}"
                )
        variant_config(config, name, where)
    return config


def variant_config(config: Config, variant: str, where: str = "config") -> Config:
    """The configuration of one variant: the common keys with that variant's overrides on top."""
    if variant not in config.variants:
        raise InputError(f"{where}: no variant named '{variant}'; variants: {', '.join(config.variants)}")
    raw = config.model_dump(mode="json")
    merged = merge(raw, config.variants[variant])
    return _validate(merged, f"{where}: variants.{variant}")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes laid over base, dicts key by key, everything else replaced whole."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def parse_override(text: str) -> dict[str, Any]:
    """'pretrain.steps=20' -> {'pretrain': {'steps': 20}}; the value is YAML."""
    key, sep, value = text.partition("=")
    if not sep or not key:
        raise InputError(f"--set {text}: expected key.path=value")
    out: Any = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        out = {part: out}
    return dict(out)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a JSON-able value, 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


ALONE = ("shards", "instructions", "blocks", "conversations", "pictures", "judge")
"""Keys of evaluate that its shards do not depend on."""


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
            return {
                "domains": domains,
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
            return {"chat": data["chat"] | {"sources": chosen}, "seed": seed}
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
            return {"pretrain": _training(raw, "pretrain"), "like": like, "held_out": held_out, "seed": seed}
        case "tune":
            return {"tune": _training(raw, "tune"), "seed": seed}
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
            own = {key: value for key, value in _training(raw, "preference").items() if key not in others}
            return {"preference": own, "seed": seed}
        case "student_text":
            return {"samples": _sampling(raw), "seed": seed}
        case "pair_scores":
            return {"score_batch": raw["distill"]["score_batch"]}
        case "distill" if raw["distill"]["data"] == "samples":
            own = _training(raw, "distill")
            kept = {key: value for key, value in own.items() if key not in ("rounds", "score_batch", "pairs")}
            kept |= {"samples": {"text": own["samples"]["text"]}}
            if not on_pairs(config):
                return {"distill": kept, "seed": seed}
            corpus = {"held_out": held_out} if own["pairs"]["corpus"] else {}
            return {"distill": kept | {"pairs": own["pairs"]}, "seed": seed, **corpus}
        case "distill":
            raw["distill"] = {k: v for k, v in raw["distill"].items() if k not in SAMPLE_KEYS}
            extra = {"like": like, "held_out": held_out} if raw["distill"]["data"] == "text" else {}
            return {"distill": _training(raw, "distill"), "seed": seed, **extra}
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
            }
    raise ValueError(f"unknown step {step}")


def _image_tokens(images: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """What the parent's vocabulary depends on; nothing without pictures."""
    return {"images": {"codes": images["codes"], "grid": images["grid"]}, "seed": seed} if images else {}


def _rubric(template: str | None) -> str:
    """The critic's texts themselves, so that an edited file counts as a changed key. Raises InputError when they are not there."""
    path = Path(template) if template else Path(__file__).parent / "preference" / "rubric.yaml"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"preference.rubric.template: {path}: cannot be read ({error})") from error


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


def on_pairs(config: Config) -> bool:
    """True where distillation compares pairs of sampled answers, which have to be scored."""
    return config.distill.loss in PAIR_LOSSES


def text_settings(config: Config, variant: str) -> dict[str, Any]:
    """What the teacher's answers depend on besides the teacher and the questions: neither the loss nor the student nor the round."""
    raw = variant_config(config, variant).model_dump(mode="json")
    return {"samples": _sampling(raw), "teacher": raw["distill"]["teacher"], "seed": raw["seed"]}


def _sampling(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw["distill"]["samples"].items() if key not in ("shards", "text")}


def _training(raw: Mapping[str, Any], step: str) -> dict[str, Any]:
    """A training stage's settings, with the content of its DeepSpeed file, so that an edited file counts as a changed key.

    Raises:
        InputError: the file is missing, not JSON, or without a ZeRO stage of 1, 2 or 3.
    """
    settings: dict[str, Any] = raw[step]
    engine = settings["engine"]
    if engine["experts"] == "auto":  # left out: a project from before the key has nothing to do again
        engine = {key: value for key, value in engine.items() if key != "experts"}
        settings = settings | {"engine": engine}
    if engine["kind"] != "deepspeed":
        return settings
    key, path = f"{step}.engine.deepspeed", Path(engine["deepspeed"])
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        stage = found["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: {path}: missing, not JSON, or without zero_optimization.stage ({error}); templates are in config/deepspeed/"
        ) from error
    if stage not in (1, 2, 3):
        raise InputError(f"{key}: {path}: zero_optimization.stage is {stage}; take 1, 2 or 3")
    return settings | {"engine": engine | {"json": found}}


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the configuration, for editors and Snakemake."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Moesaic configuration"
    return schema


# ---------------------------------------------------------------- error messages


def _validate(raw: Mapping[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {line}" for line in _explain(error, raw))) from None


def _explain(error: ValidationError, raw: Mapping[str, Any]) -> Iterator[str]:
    for item in error.errors(include_url=False):
        location = _strip_tags(item["loc"], raw)
        path = ".".join(str(part) for part in location)
        kind, value = item["type"], item.get("input")
        if kind == "extra_forbidden":
            known = _known_keys(location[:-1])
            yield f"{path}: unknown key (value {value!r}){_nearest(str(location[-1]), known)}; known here: {', '.join(known) or 'none'}"
        elif kind == "missing":
            yield f"{path}: this key is required"
        elif kind == "value_error":
            message = item["msg"].removeprefix("Value error, ")
            yield f"{path + ': ' if path else ''}{message}"
        else:
            yield f"{path}: {item['msg'][0].lower() + item['msg'][1:]}, got {value!r}{_near_value(value, item)}"


def _strip_tags(location: tuple[Any, ...], raw: Any) -> list[Any]:
    """Pydantic puts union tags into paths; keep only what is really a key of the input (or the last part)."""
    out: list[Any] = []
    node = raw
    for i, part in enumerate(location):
        if (isinstance(node, Mapping) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]
        elif i < len(location) - 1 or not isinstance(node, Mapping | list):
            continue
        out.append(part)
    return out


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in get_args(annotation):
        yield from _models(arg)


def _known_keys(location: list[Any]) -> list[str]:
    models: list[type[BaseModel]] = [Config]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [m for field in fields for m in _models(field.annotation)]
    return sorted({key for model in models for key in model.model_fields})


def _nearest(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _near_value(value: Any, item: Any) -> str:
    expected = str(item.get("ctx", {}).get("expected", ""))
    return (
        _nearest(str(value), [part.strip("' ") for part in expected.replace(" or ", ",").split(",")])
        if expected
        else ""
    )
