"""The workflow's files: in the wheel beside the code, in a checkout at the top of the repository."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """The folder that holds Snakefile, rules, config, profiles and envs.

    Raises:
        FileNotFoundError: the installation lacks them.
    """
    for place in (PACKAGE / "workflow", PACKAGE.parents[1]):
        if (place / "Snakefile").is_file() and (place / "rules").is_dir():
            return place
    raise FileNotFoundError(
        f"no Snakefile beside {PACKAGE}: the installation is incomplete; install moesaic again"
    )


def snakefile() -> str:
    """Path of the workflow, for `include:` and `module:` in other Snakefiles."""
    return str(folder() / "Snakefile")
