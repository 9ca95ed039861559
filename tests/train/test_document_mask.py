"""Attention that stays within a document: the same losses as each document alone."""

import numpy as np
import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic.train.objectives import Trainee, Weights
from moesaic.train.streams import IGNORE, Row, collate, places


def test_places_count_from_each_document():
    assert places(np.array([0, 3, 4]), 6).tolist() == [0, 1, 2, 0, 0, 1]
    assert places(np.array([2]), 5).tolist() == [0, 1, 0, 1, 2], "a document cut by the block's start"
    assert places(np.array([], dtype=np.int32), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["dense", "granitemoeshared", "glm4_moe"])
def test_packed_documents_cost_what_they_cost_alone(tmp_path, kind):
    model = tiny_llama() if kind == "dense" else tiny_moe(tmp_path, shared=32, experts=8, family=kind).model
    trainee = Trainee(model.eval(), Weights())
    stream = np.random.default_rng(0)
    ids = stream.integers(3, 512, (2, 24))
    targets = np.append(ids[:, 1:], np.full((2, 1), IGNORE), axis=1)
    cuts = ([0, 9, 15], [0, 4])
    packed = [Row(ids[i], targets[i], places(np.array(cuts[i]), 24)) for i in range(2)]
    device = torch.device("cpu")
    with torch.no_grad():
        together = trainee(collate(packed, ["a", "b"], 1, 0.0, device))[1]["nll_B"]
        blind = trainee(collate([Row(*row[:2]) for row in packed], ["a", "b"], 1, 0.0, device))[1]["nll_B"]
        for i in range(2):
            alone = 0.0
            for start, end in zip(cuts[i], [*cuts[i][1:], 24], strict=True):
                row = Row(ids[i, start:end], targets[i, start:end])
                alone += float(trainee(collate([row], ["a"], 1, 0.0, device))[1]["nll_B"])
            assert float(together[i]) == pytest.approx(alone, rel=1e-5)
            assert abs(float(blind[i]) - alone) > 0.01, "without the mask the documents would see each other"
