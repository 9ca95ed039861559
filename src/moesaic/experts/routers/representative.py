"""Router `representative`: an expert is called by the neuron whose activation pattern is nearest to the mean of its expert.

Source: CMoE (arXiv 2502.04416), whose score |x u_r * silu(x g_r)| of the representative neuron r is not linear and no stock
architecture has it. Here the row is the best linear stand-in on the calibration tokens: the ridge regression of that score, divided by its
mean, on the layer input. benchmarks/construct.py measures it beside the others.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations, Ffn
from moesaic.experts.routers import contribution

NEEDS_ACTIVATIONS = True


def fit(
    ffn: Ffn,
    batches: Iterable[Activations],
    assignment: Assignment,
    options: dict[str, Any],
    seed: int,
    layer: int,
) -> Tensor:
    """Router weights [E, D]."""
    neurons_E = representatives(ffn, batches, assignment)
    return contribution.regress(
        batches,
        lambda batch: batch.weigh(batch.h_TF[:, neurons_E].abs()),
        options["router_ridge"],
        assignment.routed_EM.shape[0],
        ffn.gate_FD.shape[1],
    )


def representatives(ffn: Ffn, batches: Iterable[Activations], assignment: Assignment) -> Tensor:
    """The neuron of each expert whose contributions over the tokens correlate most with the expert's mean contribution [E]."""
    norm_F = ffn.down_DF.norm(dim=0)
    experts = assignment.routed_EM.shape[0]
    dot, own = torch.zeros(assignment.routed_EM.shape), torch.zeros(assignment.routed_EM.shape)
    for batch in batches:
        contribution_TF = batch.weigh(batch.h_TF.abs() * norm_F)
        for expert in range(experts):
            part_TM = contribution_TF[:, assignment.routed_EM[expert]]
            dot[expert] += part_TM.T @ part_TM.mean(dim=1)
            own[expert] += part_TM.square().sum(dim=0)
    nearest = (dot / own.sqrt().clamp_min(1e-12)).argmax(dim=1)
    return assignment.routed_EM[torch.arange(experts), nearest]
