"""Training that learns to skip on two ranks: what one budget follows is counted over both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

RANKS = """
import json, os, sys
import torch
sys.path[:0] = json.loads(os.environ["TEST_PATHS"])
from test_depth_training import made, settings
from ports import free_port
from test_engine import settings, validated
from test_objectives import batch
from moesaic.train.engine import build
from moesaic.train.sums import Sums

torch.set_num_threads(1)
trainee = made(capacity=0.6, anneal=2)
engine = build(trainee, settings())
own, local = [], []
for step in range(4):
    trainee.depth.begin_step(step)
    item = batch(rows=2, seed=10 * step + engine.rank)
    item = type(item)(item.ids_BT, item.targets_BT, None, ["a", "a"], 2 * item.step_targets, 0.5)
    sums = Sums(["a"])
    loss, statistics = engine.forward_backward(item, last=True)
    sums.add(loss, statistics, item.domains, 0.5)
    engine.step(step)
    _, counts = sums.reduced_depth(engine)
    trainee.depth.after_step(counts, step)
    own.append(trainee.depth.budgets())
    local.append((statistics["depth_L4"][:, 0] / statistics["depth_L4"][:, 1]).tolist())
found = {"world": engine.world, "budgets": own, "local": local}
open(sys.argv[1] + f"/{engine.rank}.json", "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_budgets_are_the_same_on_two_ranks(tmp_path):
    port = free_port()
    here = Path(__file__).parent
    paths = json.dumps([str(here), str(here.parent)])
    started = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true", "TEST_PATHS": paths,
        }  # fmt: skip
        command = [sys.executable, "-c", RANKS, str(tmp_path)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["world"] == 2
    assert one["budgets"] == two["budgets"]
    assert one["local"] != two["local"], "the ranks saw the same text, so nothing was compared"
    assert sum(one["budgets"][-1]) / 3 == pytest.approx(0.6, abs=1e-6)
    assert one["budgets"][-1] != one["budgets"][-2]
