"""The environments of envs/ agree with each other and with pyproject.toml."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ENVS = ROOT / "envs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    lines = [line.split("#")[0].strip() for line in (ENVS / name).read_text().splitlines()]
    return {item.name: item for item in map(Requirement, filter(None, lines))}


@pytest.mark.parametrize("name", ["cpu.txt", "cuda.txt"])
def test_pins_are_exact_and_allowed_by_the_package(name):
    asked = [Requirement(line) for line in PROJECT["dependencies"]]
    asked += [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
    found = pins(name)
    for pin in found.values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
    for need in asked:
        if need.name in found:
            version = str(found[need.name].specifier).removeprefix("==")
            assert need.specifier.contains(version), f"{name}: {found[need.name]}, pyproject asks for {need}"
    known = {need.name for need in asked}
    assert set(found) - known <= {"tokenizers"}, "a pin that nothing asks for"


def test_cpu_and_cuda_differ_in_torch_only():
    cpu, cuda = pins("cpu.txt"), pins("cuda.txt")
    assert {name for name in cpu | cuda if str(cpu.get(name)) != str(cuda.get(name))} <= {"torch"}


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_conda_environment_installs_by_its_script(name, tmp_path):
    """Snakemake copies the file elsewhere before conda reads it, so a path in it would point at nothing."""
    found = yaml.safe_load((ENVS / f"{name}.yaml").read_text())
    assert all(
        isinstance(item, str) and "/" not in item and ".." not in item for item in found["dependencies"]
    )
    (python,) = [item for item in found["dependencies"] if item.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.split("=")[1])
    script = ENVS / f"{name}.post-deploy.sh"
    (install,) = [line for line in script.read_text().splitlines() if "pip install" in line]
    (extras,) = re.findall(r"source\[([\w,]+)\]", install)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    shown = tmp_path / "python"
    shown.write_text('#!/bin/sh\necho "$@"\n')
    shown.chmod(0o755)
    done = run(script, ROOT, tmp_path)
    assert done.stdout.split() == ["-m", "pip", "install", "-c", f"./envs/{name}.txt", f".[{extras}]"]
    done = run(script, tmp_path, tmp_path)
    assert done.returncode == 1
    assert "MOESAIC_SOURCE" in done.stderr


def run(script, folder, path):
    return subprocess.run(
        ["bash", str(script)],
        cwd=folder,
        env={"PATH": f"{path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_rules_and_container_name_files_that_exist():
    rules = {
        name
        for path in (ROOT / "rules").glob("*.smk")
        for name in re.findall(r'"(\.\./envs/\S+)"', path.read_text())
    }
    assert rules
    assert all((ROOT / "rules" / name).is_file() for name in rules)
    text = (ENVS / "moesaic.def").read_text()
    (pinned, extras) = re.search(r"-c /opt/moesaic/(\S+) '/opt/moesaic\[(\w+)\]'", text).groups()
    assert (ROOT / pinned).is_file()
    assert extras in PROJECT["optional-dependencies"]
    copied = re.findall(r"^    (\S+) /opt/moesaic/(\S+)$", text, re.M)
    assert {"pyproject.toml", "setup.py", "src", "rules", "envs"} <= {name for name, _ in copied}
    assert all(name == place and (ROOT / name).exists() for name, place in copied), (
        "and never results/ or .venv/"
    )
