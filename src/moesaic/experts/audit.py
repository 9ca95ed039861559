"""What a split is worth, measured on text that made no choice in it: ours or a stranger's checkpoint.

Lift over independence: how much more often two neurons of one expert are active on the same token than independent neurons of the same
rates would be, minus 1. Raw cuts are not comparable between splits, since sorting neurons by how often they fire lowers them too.

Shapes: T tokens, E experts, K experts per token, M neurons per expert, N blocks, L MoE layers.
"""

import itertools
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.experts import reconstruct, scale
from moesaic.experts.calibration import LayerActivations
from moesaic.experts.features import Ffn, active
from moesaic.experts.graphs import digraph, placement
from moesaic.experts.layer import Layer, fresh

log = logging.getLogger("moesaic.audit")

RANDOM_SPLITS = 20
RESAMPLES = 500


class LayerAudit:
    """Sums over the audited text of one layer; `add` one block of text at a time."""

    def __init__(self, experts: int, neurons: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.experts, self.neurons = experts, neurons
        self.orders_RP = torch.stack(
            [torch.randperm(experts * neurons, generator=generator) for _ in range(RANDOM_SPLITS)]
        )
        self.pairs_N: list[float] = []
        self.all_pairs_N: list[float] = []
        self.random_NR: list[Tensor] = []
        self.fired_NP: list[Tensor] = []
        self.tokens_N: list[int] = []
        self.load_E = torch.zeros(experts)
        self.lengths: list[Tensor] = []
        self.index_TK: list[Tensor] = []

    def add(
        self, routed_TP: Tensor, shared_TS: Tensor, length_TE: Tensor, index_TK: Tensor, top: float
    ) -> None:
        """One block.

        Args:
            routed_TP, shared_TS: contributions |h| * ||down column|| of the routed (expert after expert) and shared neurons.
            length_TE: length of each expert's output. index_TK: the chosen experts. top: share of the neurons that count as active.
        """
        on_TP = active(torch.cat([shared_TS, routed_TP], dim=1), top)[:, shared_TS.shape[1] :]
        self.add_active(on_TP)
        self.load_E += torch.bincount(index_TK.flatten(), minlength=self.experts)
        self.lengths.append(length_TE)
        self.index_TK.append(index_TK)

    def add_active(self, on_TP: Tensor) -> None:
        """Which routed neurons are active on the tokens of one block."""
        self.pairs_N.append(self._pairs(on_TP))
        count_T = on_TP.sum(dim=1).double()
        self.all_pairs_N.append(float((count_T * (count_T - 1)).sum()))
        self.random_NR.append(torch.tensor([self._pairs(on_TP[:, order]) for order in self.orders_RP]))
        self.fired_NP.append(on_TP.sum(dim=0).double())
        self.tokens_N.append(len(on_TP))

    def _pairs(self, on_TP: Tensor) -> float:
        count_TE = on_TP.view(len(on_TP), self.experts, self.neurons).sum(dim=2).double()
        return float((count_TE * (count_TE - 1)).sum())

    def summary(self, seed: int) -> dict[str, Any]:
        """The layer's figures, JSON-able."""
        blocks = len(self.pairs_N)
        every = torch.arange(blocks)
        pairs_N, tokens_N = torch.tensor(self.pairs_N), torch.tensor(self.tokens_N)
        fired_NEM = torch.stack(self.fired_NP).view(blocks, self.experts, self.neurons)
        generator = torch.Generator().manual_seed(seed)
        resampled = [
            _lift(pairs_N, fired_NEM, tokens_N, torch.randint(blocks, (blocks,), generator=generator))
            for _ in range(RESAMPLES)
        ]
        random_NR = torch.stack(self.random_NR).double()
        controls = [
            _lift(random_NR[:, r], fired_NEM.flatten(1)[:, order].view(fired_NEM.shape), tokens_N, every)
            for r, order in enumerate(self.orders_RP)
        ]
        spread = float(np.std(controls))
        lift = _lift(pairs_N, fired_NEM, tokens_N, every)
        total = sum(self.all_pairs_N)
        cut, random_cut = total - sum(self.pairs_N), total - float(random_NR.sum()) / RANDOM_SPLITS
        low, high = (float(value) for value in np.quantile(resampled, [0.025, 0.975]))
        length_TE = torch.cat(self.lengths) if self.lengths else torch.zeros(2, self.experts)
        similarity = torch.corrcoef(length_TE.T) if self.experts > 1 else torch.ones(1, 1)
        off = similarity[~torch.eye(self.experts, dtype=torch.bool)]
        off = off[off.isfinite()]  # an expert that computes nothing is like no other
        load_E = self.load_E / self.load_E.sum().clamp_min(1)
        return {
            "lift": round(lift, 6),
            "lift_low": round(low, 6),
            "lift_high": round(high, 6),
            "z": round((lift - float(np.mean(controls))) / spread, 3) if spread > 0 else 0.0,
            "contrast": round(1.0 - cut / random_cut, 6) if random_cut > 0 else 0.0,
            "similarity": round(float(off.mean()), 6) if off.numel() else 1.0,
            "load": [round(float(value), 6) for value in load_E],
            "load_cv": round(float(load_E.std(unbiased=False) / load_E.mean().clamp_min(1e-12)), 6),
        }


def _lift(pairs_N: Tensor, fired_NEM: Tensor, tokens_N: Tensor, chosen: Tensor) -> float:
    """Lift over the chosen blocks (indices, repeats count)."""
    fired_EM = fired_NEM[chosen].sum(dim=0)
    tokens = float(tokens_N[chosen].sum())
    expected = float((fired_EM.sum(dim=1).square() - fired_EM.square().sum(dim=1)).sum()) / tokens
    return float(pairs_N[chosen].sum()) / max(expected, 1e-12) - 1.0


def of_layer(
    ffn: Ffn, found: Layer, activations: LayerActivations, settings: dict[str, Any], scores: str, seed: int
) -> LayerAudit:
    """Audit a layer as it was built, on the held-out calibration blocks."""
    experts, neurons = found.assignment.routed_EM.shape
    shared = found.assignment.shared_S.numel()
    own = fresh(found.assignment, found.gate_PD, found.up_PD, found.down_PD)
    norm_P = (
        ffn.down_DF.norm(dim=0)[reconstruct.columns(found.assignment)]
        if own is None
        else found.down_PD.norm(dim=1)
    )
    audit = LayerAudit(experts, neurons, seed)
    for batch in activations.held_out():
        h_TP = reconstruct.inner(batch, found.assignment, own)
        contribution_TP = h_TP.abs() * norm_P
        down_EMD = found.down_PD[shared:].view(experts, neurons, -1)
        length_TE = torch.stack(
            [
                (h_TP[:, shared + e * neurons : shared + (e + 1) * neurons] @ down_EMD[e]).norm(dim=1)
                for e in range(experts)
            ],
            dim=1,
        )
        weights_TE = scale.weigh(
            batch.x_TD, found.router_ED, found.bias_E, settings["per_token"], 1.0, scores
        )
        index_TK = weights_TE.topk(settings["per_token"], dim=1).indices
        audit.add(
            contribution_TP[:, shared:],
            contribution_TP[:, :shared],
            length_TE,
            index_TK,
            settings["calibration"]["top"],
        )
    return audit


def warn(layers: list[dict[str, Any]]) -> None:
    """Say so when the split carries no signal."""
    weak = [item for item in layers if item["lift_low"] <= 0.0 or item["z"] < 2.0]
    if len(weak) > len(layers) / 2:
        log.warning(
            "in %d of %d layers the neurons of an expert are active together no more often than those of random experts: the split carries no signal",
            len(weak), len(layers),
        )  # fmt: skip


def routing(index_LTK: list[Tensor], experts: int, seed: int) -> dict[str, Any]:
    """Balance of the routing digraph and the traffic of expert placements."""
    transitions = (
        np.stack([_handed_on(a, b, experts) for a, b in itertools.pairwise(index_LTK)])
        if len(index_LTK) > 1
        else np.zeros((0, experts, experts))
    )
    closing = _handed_on(index_LTK[-1], index_LTK[0], experts)
    graph = digraph.routing(transitions, closing)
    found: dict[str, Any] = {
        "imbalance": digraph.imbalance(graph),
        "beta": digraph.certificate(graph),
        "placement": {},
    }
    for devices in (2, 4, 8):
        if experts % devices == 0 and len(transitions):
            placed = placement.minimum_cut(transitions, devices, seed)
            usual = placement.round_robin(len(transitions) + 1, experts, devices)
            found["placement"][str(devices)] = {
                "round_robin": round(placement.traffic(transitions, usual), 6),
                "minimum_cut": round(placement.traffic(transitions, placed), 6),
                "device": placed.tolist(),
            }
    return found


def _handed_on(from_TK: Tensor, to_TK: Tensor, experts: int) -> np.ndarray:
    """Tokens from expert i to expert j [E, E]; each of the K * K pairs of a token counts."""
    pairs = from_TK[:, :, None] * experts + to_TK[:, None, :]
    return (
        torch.bincount(pairs.flatten(), minlength=experts * experts).view(experts, experts).double().numpy()
    )
