"""A task of lm-evaluation-harness as YAML, with `!function MODULE.NAME` where the harness is to call a function of a file beside it."""

from collections.abc import Mapping
from typing import Any

import yaml


class Function(str):
    """MODULE.NAME of a function."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def text(config: Mapping[str, Any]) -> str:
    """The file's text, keys in their order."""
    found: str = yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return found
