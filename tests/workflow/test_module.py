"""The workflow as a Snakemake module in somebody else's Snakefile, with the configuration that this one hands over."""

import subprocess
import sys

import project

from moesaic.flow import manifest

SNAKEFILE = """
from moesaic.project import workflow as moesaic_workflow

configfile: "mine.yaml"

module moesaic:
    snakefile: moesaic_workflow.snakefile()
    config: config

use rule * from moesaic

onstart: moesaic.onstart()
onsuccess: moesaic.onsuccess()
onerror: moesaic.onerror()

rule mine:
    default_target: True
    input: "results/activation/construct/manifest.json"
    output: "mine.txt"
    shell: "echo built on {input} > {output}"
"""


def test_rules_of_ones_own_on_top(tmp_path):
    project.make(tmp_path, {"stages": ["construct"]}).rename(tmp_path / "mine.yaml")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "mine.txt").read_text() == "built on results/activation/construct/manifest.json\n"
    assert manifest.read(tmp_path / "results/activation/construct").step == "construct"
