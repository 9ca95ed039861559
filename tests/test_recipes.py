"""What is published as a recipe gets past its first steps: enough text for the statistics, a batch that the GPUs of its header share."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moesaic import config
from moesaic.experts import calibration
from moesaic.settings import step_settings

ROOT = Path(__file__).parents[1]
RECIPES = [
    ROOT / "config/config.yaml",
    *sorted((ROOT / "config/recipes").glob("*.yaml")),
    *(path for path in sorted((ROOT / "studies").glob("*.yaml")) if "variants:" in path.read_text()),
]


class Blocks:
    """As many blocks as the settings leave of a domain."""

    def __init__(self, count, length):
        self.count, self.length = count, length

    def __len__(self):
        return self.count

    def tokens(self, rows):
        return np.zeros((len(rows), self.length), np.uint16)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_calibration_takes_enough_blocks(path, monkeypatch):
    loaded = config.load(path)
    data = loaded.data
    count = 10**6 if data.max_train_tokens is None else data.max_train_tokens // data.block
    stored = Blocks(count, data.block)
    monkeypatch.setattr(
        calibration,
        "packed",
        SimpleNamespace(domains=lambda _: list(data.domains), open_blocks=lambda *_: stored),
    )
    monkeypatch.setattr(calibration, "manifest", SimpleNamespace(verify=lambda *_, **__: None))
    tokens = SimpleNamespace(metrics={"block": data.block})
    for variant in loaded.variants:
        own = step_settings(loaded, "construct", variant)
        text = calibration.blocks(tokens, own["held_out"], own["experts"]["calibration"], own["seed"])
        assert text.fitted >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_gpus_of_the_header_share_every_batch(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded = config.load(path)
    gpus = int(next(iter(re.findall(r"--gpus (\d+)", path.read_text())), 1))
    for variant in loaded.variants:
        for stage in loaded.stages[1:]:
            own = step_settings(loaded, stage, variant)[stage]
            assert own["batch"] % (gpus * own["micro_batch"]) == 0, (variant, stage)
