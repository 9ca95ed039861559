"""What the Snakefile does outside of its jobs: the environment they find, tracking before and after, the closing table."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from moesaic import config
from moesaic.flow import current, files, manifest, track
from moesaic.flow.current import Found
from moesaic.project import extras
from moesaic.schema import Config

RESULTS = Path("results")
NAME = RESULTS / "name.txt"
"""The name of the run that this folder is of."""
OTHER = """
WARNING: these were not made with the settings of this configuration:
{paths}
Snakemake makes those again that the configuration left behind, in a run of the whole workflow. What a `moesaic STEP --set ...`
made by hand it keeps as it is. To have all of them as configured, add to your snakemake command:
  --forcerun {files}
"""
STALE = f"""
No table: {RESULTS / "report.html"} was not made from this configuration, or from models that were made again since.
"""


def config_file(settings: Config) -> Path:
    """Where the jobs read the merged configuration: named by its digest, so that a queued job never sees a later edit."""
    return RESULTS / "config" / f"{config.digest(config.given(settings))[:12]}.json"


def inherited() -> Config | None:
    """In a job, the configuration that the main process wrote, whatever stands in the user's file by now; None: the job's environment names none.

    Raises:
        InputError: the file is gone or damaged.
    """
    path = os.environ.get("MOESAIC_CONFIG")
    return config.load(path) if path else None


def prepare(settings: Config) -> None:
    """At every parse of the Snakefile: rules call the `moesaic` that belongs to this Snakemake, with this configuration.

    Under --sdm conda the environment's own `moesaic` comes first in the path.
    """
    own = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if own not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([own, path])
    os.environ["MOESAIC_CONFIG"] = str(config_file(settings))
    # Slurm's signal before the time limit hits the Snakemake inside the job, too; it must live until the step has saved.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def start(settings: Config) -> None:
    """Once, in the main process: write the configuration, open the MLflow run, tell the jobs about both.

    Raises:
        WorkflowError: the results are of a run of another name.
    """
    _claim(settings.name.strip())
    for line in extras.missing(settings):
        sys.stderr.write(f"WARNING: {line}\n")
    # not sorted: variants and domains keep their order in the jobs, which digests of settings see
    files.write_text(
        config_file(settings), json.dumps(config.given(settings), indent=1, ensure_ascii=False) + "\n"
    )
    os.environ["MOESAIC_PARENT_RUN"] = track.start(settings, RESULTS)
    os.environ["MOESAIC_GIT_COMMIT"] = track.git_commit()
    os.environ["MOESAIC_TRACKING_URI"] = settings.track.uri
    os.environ["MOESAIC_EXPERIMENT"] = settings.track.experiment


def _claim(name: str) -> None:
    """Note whose results these are: another run's variants may have the same names, and would replace its models. A folder without the note is anyone's."""
    there = NAME.read_text(encoding="utf-8").strip() if NAME.exists() else name
    if there != name:
        from snakemake.exceptions import WorkflowError

        raise WorkflowError(
            f"{RESULTS.absolute()} holds the run '{there}', and this configuration is named '{name}': its models would replace those of '{there}'. "
            "Give it a folder of its own: add `--directory FOLDER` to the snakemake command, or lay one out with `moesaic init FOLDER --recipe RECIPE`. "
            f"If it is the same run under a new name, or the old one may go, delete {NAME} and start again"
        )
    files.write_text(NAME, f"{name}\n")


def finish(settings: Config, status: str) -> None:
    """Once, in the main process: replay all files into MLflow; after a success the closing words."""
    found = current.look(settings, RESULTS)
    track.replay(settings, RESULTS, status, found)
    if status == "FINISHED":
        sys.stderr.write(closing(found, settings.track.uri))


def closing(found: Mapping[Path, Found], uri: str | None = None) -> str:
    """The stage table where the report is this configuration's; a warning that names steps made with other settings.

    Snakemake compares the configuration with what its own last job was given. A step made by hand, with `--set`, it keeps.
    """
    from moesaic.report import summary

    text = ""
    if other := [
        str(folder / manifest.NAME) for folder, item in found.items() if item.done and not item.configured
    ]:
        text += OTHER.format(paths="\n".join(f"  {path}" for path in other), files=" ".join(other))
    if not (RESULTS / "summary.json").exists():
        return text
    return text + (summary.text(RESULTS, uri) if found[RESULTS].finished else STALE)
