"""Every `moesaic` command as Markdown: what it does, usage, arguments, from the command line's parser."""

import argparse
import ast
import importlib.util
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path

from moesaic import cli
from moesaic.flow.step import STEPS

INTRODUCTION = """# Commands

The workflow calls one command for each step; each works without Snakemake as well. Settings, inputs and the folder follow from `--config`, `--variant` and
`--stage`. This page is generated from the command line's parser; `moesaic COMMAND --help` prints the
same of one command.

Exit codes: 0 done, 1 an unexpected error, 2 something that you can change (one line says what), 75 stopped by a signal after saving: run it again and it goes on.

For example:

"""


def page() -> str:
    """The whole page."""
    examples = (cli.parser().description or "").split("Examples:\n")[1]
    found = commands()
    shared = _options(found["dense"])
    common = "".join(_entry(item) for item in shared.values())
    return "".join(
        [
            INTRODUCTION, textwrap.indent(textwrap.dedent(examples).strip(), "    "),
            "\n\n## Steps\n\nEach step takes these options:\n\n", common,
            *(part for name in STEPS for part in _command(name, found[name], set(shared))),
            "## Tools\n\n", *(part for name in found if name not in STEPS for part in _command(name, found[name])),
        ]
    )  # fmt: skip


def commands() -> dict[str, argparse.ArgumentParser]:
    """Name of each command -> its parser, whose description is its line of help."""
    found = _all()
    for item in found._choices_actions:
        found.choices[item.dest].description = _of_step(item.dest) if item.dest in STEPS else item.help
    return dict(found.choices)


def _all() -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    return next(item for item in cli.parser()._actions if isinstance(item, argparse._SubParsersAction))


def what(name: str) -> str:
    """Of a tool its line of help. Of a step the first sentence of the docstring of its module, or of its function where it has one of its own; the module is not imported."""
    if name not in STEPS:
        return next(item.help or "" for item in _all()._choices_actions if item.dest == name)
    return _of_step(name)


def _of_step(step: str) -> str:
    where = importlib.util.find_spec(STEPS[step].module)
    assert where is not None
    assert where.origin is not None
    tree = ast.parse(Path(where.origin).read_text(encoding="utf-8"))
    functions = {item.name: item for item in tree.body if isinstance(item, ast.FunctionDef)}
    own = STEPS[step].function != "run"
    text = ast.get_docstring(functions[STEPS[step].function] if own else tree) or ""
    return " ".join(text.split("\n\n")[0].split()).removeprefix(f"Step `{step}`: ").rstrip(".")


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {_name(item): item for item in parser._actions if not isinstance(item, argparse._HelpAction)}


def _command(name: str, parser: argparse.ArgumentParser, known: Collection[str] = ()) -> Iterator[str]:
    line, options = parser.description or "", _options(parser)
    yield f"### `moesaic {name}` {{ #{name} }}\n\n{line[0].upper()}{line[1:]}.\n\n"
    own = {key: item for key, item in options.items() if key not in known}
    shown = [key if item.required else f"[{key}]" for key, item in own.items()]
    usage = " ".join([f"moesaic {name}", *(["OPTIONS"] if known else []), *shown])
    yield textwrap.indent("\n    ".join(textwrap.wrap(usage, 100, break_on_hyphens=False)), "    ") + "\n\n"
    yield from map(_entry, own.values())


def _name(item: argparse.Action) -> str:
    if not item.option_strings:
        return item.dest.upper()
    return item.option_strings[-1] + ("" if item.nargs == 0 else f" {item.metavar or item.dest.upper()}")


def _entry(item: argparse.Action) -> str:
    parts = [item.help or ""]
    if item.required and item.option_strings:
        parts.append("required")
    if item.default not in (None, [], False):
        parts.append(f"default `{item.default}`")
    return f"`{_name(item)}`\n:   {'; '.join(filter(None, parts))}\n\n"
