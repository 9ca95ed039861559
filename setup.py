"""The workflow's files (Snakefile, rules, config, profiles, envs) go into the wheel beside the code; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WORKFLOW = ("Snakefile", "rules", "config", "profiles", "envs")


class WithWorkflow(build_py):
    """Copies them to moesaic/workflow; an editable install finds them in the repository."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "moesaic", "workflow")
        for name in WORKFLOW:
            if Path(name).is_dir():
                shutil.copytree(name, target / name, dirs_exist_ok=True)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(name, target / name)


setup(cmdclass={"build_py": WithWorkflow})
