import json

from moesaic import config as moesaic_config
from moesaic.errors import InputError
from moesaic.flow import hooks, local_data, paths, told
from moesaic.flow.step import STEPS
from moesaic.settings import compared

# Every job reads this file too. What it computes is what the main process was started with: a file edited since is not looked at.
try:
    INHERITED = None if workflow.is_main_process else hooks.inherited()
except InputError as error:
    raise WorkflowError(str(error)) from None

# A configuration given by --configfile replaces the embedded default as a whole; mixing two corpora is never meant.
if INHERITED is None and not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


try:
    if INHERITED is None:
        for path in workflow.configfiles:
            # Snakemake's own reading takes a key that stands twice
            moesaic_config.read(path)
    CONFIG = INHERITED or moesaic_config.check(config, "config")
    if workflow.is_main_process:
        told.check(CONFIG)
except InputError as error:
    raise WorkflowError(str(error)) from None

# Nor does the Snakemake of a job read the user's file, which may be half saved by then. Of a module it is the outer workflow's, and left alone.
if (
    workflow.is_main_process
    and workflow.overwrite_configfiles
    and not workflow.modifier.skip_configfile
):
    workflow.config_settings.configfiles = [hooks.config_file(CONFIG).absolute()]

# The jobs find their configuration and their command in the environment.
hooks.prepare(CONFIG)


wildcard_constraints:
    variant="|".join(CONFIG.variants),
    stage="|".join(CONFIG.stages),
    owner="|".join(["dense", *CONFIG.variants]),
    round="[0-9]+",
    shard="[0-9]+",


def at(step, **where):
    """Manifest of a step."""
    return str(paths.folder(step, **where) / "manifest.json")


def plan(step, wildcards, stage=None):
    """Settings, inputs and folder of a step for the wildcards of a job."""
    part = None
    if "round" in wildcards.keys() or "shard" in wildcards.keys():
        part = paths.Part(
            int(wildcards.get("round", 1)), int(wildcards.get("shard", 0))
        )
    variant = wildcards.get("variant", wildcards.get("owner"))
    stage = wildcards.get("stage", wildcards.get("cache", stage))
    return paths.plan_step(CONFIG, step, variant, stage, part)


def settings(step, stage=None):
    """The step's own settings as JSON, and the state of the user's files that it reads: what changed in them reruns the step and what is below it."""

    def text(wildcards):
        found = plan(step, wildcards, stage).settings
        state = local_data.state(found) if step in local_data.STEPS else ""
        return json.dumps(compared(found), sort_keys=True) + state

    return text


def upstream(step, stage=None):
    """The manifests that a step reads."""
    return lambda wildcards: [
        str(path) for path in plan(step, wildcards, stage).inputs.values()
    ]


def version(step):
    """Raised by hand when a step's result changes, so that a reformat never restarts a week of GPUs."""
    return STEPS[step].version
