"""What is wrong with a configuration, in lines that name the key, the value and what is allowed."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from moesaic.schema import Config

TAG = re.compile(r"\[|^constrained-|^function-")
"""What pydantic calls the members of a union that have no name of their own."""


def explain(error: ValidationError, raw: Mapping[str, Any]) -> Iterator[str]:
    """One line for each error. Args: raw: what was validated."""
    for item in error.errors(include_url=False):
        location = _strip_tags(item["loc"], raw)
        path = ".".join(str(part) for part in location)
        if item["loc"][-1:] == ("[key]",):  # a mapping's own key: `no`, `1` or a date without quotes
            above = ".".join(map(str, _strip_tags(item["loc"][:-2], raw)))
            yield f"{above}: a name must be text, got {item.get('input')!r}; put it in quotes"
            continue
        kind, value = item["type"], item.get("input")
        if kind == "extra_forbidden":
            known = _known_keys(location[:-1])
            yield f"{path}: unknown key (value {value!r}){nearest(str(location[-1]), known)}; known here: {', '.join(known) or 'none'}"
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
        elif (
            i < len(location) - 1
            or not isinstance(node, Mapping | list)
            or (isinstance(part, str) and TAG.search(part))
        ):
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


def nearest(key: str, known: Iterable[str]) -> str:
    """A question that ends the line, where a known name is close to the one given; otherwise nothing."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _near_value(value: Any, item: Any) -> str:
    expected = str(item.get("ctx", {}).get("expected", ""))
    return (
        nearest(str(value), [part.strip("' ") for part in expected.replace(" or ", ",").split(",")])
        if expected
        else ""
    )
