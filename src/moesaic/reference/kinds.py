"""Types, ranges and defaults of configuration keys, in words."""

import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

SIMPLE = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Any: "anything",
    type(None): "null",
}
BOUNDS = (("gt", "above {}"), ("ge", "{} or more"), ("lt", "below {}"), ("le", "at most {}"))


def models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key can hold, in order; empty for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def suffix(annotation: Any) -> str:
    """What stands between a key and the keys of the sections in it: `[]` in a list, `.NAME` in a map, nothing otherwise."""
    origin = get_origin(annotation)
    if origin is list and models(annotation):
        return "[]"
    if origin is dict and models(annotation):
        return ".NAME"
    if origin in (Union, types.UnionType, Annotated):
        return next((found for part in get_args(annotation) if (found := suffix(part))), "")
    return ""


def words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type with its range, such as 'number, above 0' or 'list of text'."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(parts[0], [*parts[1:], *metadata])
    if origin is Literal:
        return _one_of([f"`{json.dumps(part).strip(chr(34))}`" for part in parts])
    if origin in (Union, types.UnionType):
        if all(models(part) for part in parts):
            return "section with a `kind`"
        named = list(dict.fromkeys(words(part) for part in parts if part is not type(None)))
        return " or ".join(named) + (", or null" if type(None) in parts else "")
    if origin is list:
        least = [f"at least {item.min_length}" for item in metadata if getattr(item, "min_length", None)]
        return ", ".join(["list of sections" if models(parts[0]) else f"list of {words(parts[0])}", *least])
    if origin is dict:
        nested = models(parts[1]) or get_origin(parts[1]) is dict
        return f"map from {'names' if nested else words(parts[0])} to {'sections' if nested else words(parts[1])}"
    if origin is tuple:
        return f"list of {len(parts)}: {words(parts[0])}"
    if models(annotation):
        return "section"
    return ", ".join([SIMPLE[annotation], *_range(metadata)])


def default(field: FieldInfo, instance: Any, name: str) -> str:
    """The default as YAML would write it in one line, or 'required'.

    Args:
        instance: the section as it is where it is not given (a stage may have other defaults than its class), None for the class's own.
    """
    value = field.get_default(call_default_factory=True) if instance is None else getattr(instance, name)
    if value is PydanticUndefined:
        return "required"
    return f"default `{_text(value)}`"


def _text(value: Any) -> str:
    def plain(item: Any) -> Any:
        return item.model_dump(mode="json", exclude_unset=True) if isinstance(item, BaseModel) else item

    return json.dumps(value, default=plain).strip('"')


def _range(metadata: Sequence[Any]) -> Iterator[str]:
    """Bounds that stand in the annotation, nested Field objects included."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _range(item.metadata)
            continue
        for key, text in BOUNDS:
            if (bound := getattr(item, key, None)) is not None:
                yield text.format(f"{bound:g}")
        if pattern := getattr(item, "pattern", None):
            yield f"matching `{pattern}`"


def _one_of(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
