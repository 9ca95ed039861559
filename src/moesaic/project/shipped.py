"""Files of config/ that come with the workflow and are asked for by name: DeepSpeed's JSON, chat templates.

`moesaic init` copies them into the project, where they may be edited: the project's own file of a name is taken before the shipped one.
"""

from pathlib import Path

from moesaic.errors import InputError
from moesaic.project import workflow

SUFFIX = {"deepspeed": ".json", "chat_templates": ".jinja"}
"""By folder of config/."""


def find(folder: str, value: str, key: str) -> Path:
    """The file that a setting means: a name (`zero2`, `chatml`), or a path of the user's own.

    Args:
        folder: of config/. key: the setting's, for the message.

    Raises:
        InputError: a name that is not known, a path that is no file.
    """
    suffix = SUFFIX[folder]
    if Path(value).name == value and not Path(value).suffix:
        own = Path("config", folder, f"{value}{suffix}")
        found = own if own.is_file() else workflow.folder() / own
    else:
        found = Path(value)
    if not found.is_file():
        known = ", ".join(names(folder))
        raise InputError(
            f"{key}: {value}: no such file; give a path (*{suffix}), or the name of a shipped one: {known}"
        )
    return found


def names(folder: str) -> list[str]:
    """Names that `find` knows."""
    return sorted(path.stem for path in (workflow.folder() / "config" / folder).glob(f"*{SUFFIX[folder]}"))
