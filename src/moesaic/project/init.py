"""`moesaic init FOLDER`: a new project with its configuration, a profile for the cluster found, and a Snakefile that includes the installed workflow."""

import logging
import shutil
from pathlib import Path

from moesaic.errors import InputError
from moesaic.project import cluster, shipped, workflow

log = logging.getLogger("moesaic.init")

SNAKEFILE = '''"""This project's workflow is the one that the installed moesaic package brings along; rules of your own go below."""

from moesaic.project import workflow as moesaic_workflow


include: moesaic_workflow.snakefile()


rule default:
    default_target: True
    input:
        rules.all.input,
    localrule: True
'''
IGNORE = "\n".join([".snakemake/", "results/", "logs/", "mlruns/", "mlflow.db*", "mlartifacts/", ""])


def make(folder: Path, recipe: str | None, partition: str | None, look: bool = True) -> list[str]:
    """Lay out a project; returns the commands to go on with.

    Args:
        recipe: name of a file in config/recipes, or None for the embedded default. partition: of the cluster, or None to choose.
        look: ask `sinfo` where there is one.

    Raises:
        InputError: the folder holds a project or other files of these names, or the recipe is unknown.
    """
    source = workflow.folder()
    config = source / "config" / "config.yaml"
    if recipe is not None:
        config = source / "config" / "recipes" / f"{recipe}.yaml"
        if not config.exists():
            known = sorted(path.stem for path in config.parent.glob("*.yaml"))
            raise InputError(f"--recipe {recipe}: unknown; recipes: {', '.join(known)}")
    for name in ("Snakefile", "config", "profiles", "slurm"):
        if (folder / name).exists():
            raise InputError(f"{folder / name} exists already; give another folder, or move it away")
    profile = (source / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8")
    partitions = cluster.read() if look else None
    chosen = None
    if partitions is not None:
        chosen = cluster.choose(partitions, partition)
        profile = cluster.fit(profile, chosen)
    elif partition is not None:
        why = "no sinfo on this machine, so no cluster to fit a profile to"
        raise InputError(
            f"--partition {partition}: {why if look else '--no-cluster asks for none; leave one out'}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config").mkdir()
    text = config.read_text(encoding="utf-8").replace("$schema=../schema.json", "$schema=schema.json")
    (folder / "config" / "config.yaml").write_text(text, encoding="utf-8")
    shutil.copy2(source / "config" / "schema.json", folder / "config" / "schema.json")
    for name in shipped.SUFFIX:
        shutil.copytree(source / "config" / name, folder / "config" / name)
    shutil.copytree(source / "profiles", folder / "profiles")
    (folder / "profiles" / "slurm" / "config.yaml").write_text(profile, encoding="utf-8")
    (folder / "slurm").symlink_to(Path("profiles", "slurm"))
    if not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text(IGNORE, encoding="utf-8")
    (folder / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    if chosen is None:
        log.info("no Slurm here: profiles/slurm is as shipped; profiles/local runs on this machine")
        run = "snakemake --profile profiles/local --cores all"
    else:
        per_node = f"{chosen.gpus} GPUs" if chosen.gpus else "no GPU"
        log.info(
            "profiles/slurm: partition %s, %d nodes with %d cores, %d MB, %s",
            chosen.name, chosen.nodes, chosen.cpus, chosen.memory, per_node,
        )  # fmt: skip
        run = "snakemake --profile slurm"
    return [f"cd {folder}", "moesaic check config/config.yaml", run]
