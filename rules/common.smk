import json
import os
import sys
from pathlib import Path

from moesaic import config as moesaic_config
from moesaic.errors import InputError
from moesaic.flow import paths

# Rules call the `moesaic` that belongs to this Snakemake; under --sdm conda the environment's own comes first.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

try:
    CONFIG = moesaic_config.check(config, "config")
except InputError as error:
    raise WorkflowError(str(error)) from None

# What the jobs read: the merged configuration under a name made of its digest, so that a job still waiting in a queue never sees
# a configuration edited since. Written once, by `onstart`.
CONFIG_FILE = f"results/config/{moesaic_config.digest(CONFIG.model_dump(mode='json'))[:12]}.json"


wildcard_constraints:
    variant="|".join(CONFIG.variants),
    stage="|".join(CONFIG.stages),


def at(step, **where):
    """Manifest of a step."""
    return str(paths.folder(step, **where) / "manifest.json")


def plan(step, wildcards, stage=None):
    """Settings, inputs and folder of a step for the wildcards of a job."""
    return paths.plan_step(CONFIG, step, wildcards.get("variant"), wildcards.get("stage", stage))


def settings(step, stage=None):
    """The step's own settings as JSON: a changed key is a changed parameter, and reruns the step and what is below it."""
    return lambda wildcards: json.dumps(plan(step, wildcards, stage).settings, sort_keys=True)


def upstream(step, stage=None):
    """The manifests that a step reads."""
    return lambda wildcards: [str(path) for path in plan(step, wildcards, stage).inputs.values()]


def version(step):
    """Raised by hand when a step's result changes, so that a reformat never restarts a week of GPUs."""
    from moesaic.flow.step import STEPS

    return STEPS[step].version


def start_tracking():
    from moesaic.flow import files, track

    files.write_json(Path(CONFIG_FILE), CONFIG.model_dump(mode="json"))
    os.environ["MOESAIC_PARENT_RUN"] = track.start(CONFIG, Path("results"))
    os.environ["MOESAIC_GIT_COMMIT"] = track.git_commit()
    os.environ["MOESAIC_TRACKING_URI"] = CONFIG.track.uri
    os.environ["MOESAIC_EXPERIMENT"] = CONFIG.track.experiment


def finish_tracking(status):
    from moesaic.flow import track

    track.replay(CONFIG, Path("results"), status)


def show_summary():
    from moesaic.report import summary

    if Path("results/summary.json").exists():
        sys.stderr.write(summary.text(Path("results")))
