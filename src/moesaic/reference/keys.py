"""Every configuration key as Markdown: path, type, range, default and help, from moesaic.schema."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from moesaic.reference import kinds
from moesaic.schema import Config

FOLDER = "reference/configuration"
INTRODUCTION = """# Configuration

One YAML file describes a run; [the embedded default](../../../config/config.yaml) is a commented example, and `moesaic check FILE` says what is
wrong with one. Unknown keys are errors. [config/schema.json](../../../config/schema.json) holds the same as a JSON schema: editors complete and check with it
where the file says `# yaml-language-server: $schema=schema.json`. `--set pretrain.steps=100` overrides a key on a command's line.

`NAME` in a path stands for a name that you choose, `[]` for each entry of a list. This page and those below are generated from `src/moesaic/schema`.
"""


def pages() -> dict[str, str]:
    """Path below the documentation's folder -> Markdown: the top level, and a page for each section."""
    found = {f"{FOLDER}/index.md": "".join([INTRODUCTION, "\n", *_top()])}
    for name, field in Config.model_fields.items():
        for model in kinds.models(field.annotation):
            instance = field.default if isinstance(field.default, BaseModel) else None
            page = _Page(f"{FOLDER}/{name}.md")
            found[page.path] = "".join([f"# {name}\n\n", *page.section([model], name, instance)])
    return found


def _top() -> Iterator[str]:
    for name, field in Config.model_fields.items():
        if kinds.models(field.annotation):
            more = f"[Its keys]({name}.md)."
            kind = "section, required" if field.is_required() else "section"
        else:
            more, kind = (
                "",
                f"{kinds.words(field.annotation, field.metadata)}; {kinds.default(field, None, name)}",
            )
        yield _entry(name, kind, " ".join(filter(None, [_help(field), more])))


class _Page:
    """One page; a section that stands in several places with equal defaults is written once."""

    def __init__(self, path: str):
        self.path = path
        self.seen: dict[str, str] = {}
        """Section and its defaults -> path of its keys."""

    def section(self, models: list[type[BaseModel]], path: str, instance: Any) -> Iterator[str]:
        """A section's keys, then the sections in it.

        Args:
            models: one, or the kinds that it may be of. instance: its default, None when there is none.
        """
        below: list[tuple[list[type[BaseModel]], str, Any]] = []
        for model in models:
            if len(models) > 1:
                names = kinds.words(model.model_fields["kind"].annotation)
                yield f"### `{path}` of kind {names}\n\n"
            if model.__doc__:
                yield f"{_line(model.__doc__)}\n\n"
            for name, field in model.model_fields.items():
                # A key of the same name may belong to several kinds; only the first gets the anchor.
                first = not any(name in other.model_fields for other in models[: models.index(model)])
                yield from self._key(name, field, path, instance, first, below)
        for inner, where, given in below:
            yield f"## `{where}` {{ #{where} }}\n\n"
            yield from self.section(inner, where, given)

    def _key(
        self, name: str, field: Any, path: str, instance: Any, anchored: bool, below: list[Any]
    ) -> Iterator[str]:
        inner, full = kinds.models(field.annotation), f"{path}.{name}"
        kind = kinds.words(field.annotation, field.metadata)
        if not inner:
            yield _entry(full, f"{kind}; {kinds.default(field, instance, name)}", _help(field), anchored)
            return
        where = full + kinds.suffix(field.annotation)
        given = getattr(instance, name) if instance is not None else field.default
        nested = given if isinstance(given, BaseModel) else None
        key = f"{[model.__qualname__ for model in inner]} {nested!r}"
        known = self.seen.get(key)
        if known is None:
            self.seen[key] = where
            # `data.domains` and the section of its entries, `data.domains.NAME`, have anchors of their own.
            below.append((inner, where, nested))
        text = kind if nested is not None else f"{kind}; {kinds.default(field, instance, name)}"
        link = f"Keys: [`{known or where}`](#{known or where})."
        yield _entry(full, text, f"{_help(field)} {link}", anchored and where != full)


def _entry(path: str, kind: str, text: str, anchored: bool = True) -> str:
    anchor = f"{{ #{path} }}" if anchored else ""
    return f"`{path}`{anchor}\n:   {kind}\n\n    {text}\n\n"


def _help(field: Any) -> str:
    inner = kinds.models(field.annotation)
    own = inner[0].__doc__ if len(inner) == 1 else None
    return _line(field.description or own or "Which kind it is; the other keys follow from it.")


def _line(text: str) -> str:
    """A docstring on one line, ended by a full stop, with nothing that Markdown takes for its own."""
    text = " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    parts = text.split("`")
    parts[1::2] = [part.replace("\\", "") for part in parts[1::2]]
    text = "`".join(parts)
    return text if text.endswith((".", ":", "?")) or not text else f"{text}."
