"""What the routers do on text: how evenly experts are used and how decided the routers are, per domain and layer.

Shapes: B blocks, T positions, L MoE layers, E experts, K experts per token, N blocks of a domain, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from moesaic.evaluate import bootstrap
from moesaic.flow import files
from moesaic.model.families import Routing


@dataclass(frozen=True)
class Usage:
    """Sums over the positions of each block; add up along N before dividing."""

    slots_NLE: np.ndarray
    """How many token slots (K per position) each expert got."""
    weights_NLE: np.ndarray
    """Sum of the weights with which each expert was chosen."""
    probability_NLE: np.ndarray
    """Sum of the softmax over all experts."""
    entropy_NL: np.ndarray
    """Sum of the entropy of that softmax, nats."""
    positions_N: np.ndarray

    @property
    def load_LE(self) -> np.ndarray:
        """Share of token slots per expert; sums to 1 in each layer (0 where every token skipped the layer)."""
        slots_LE = self.slots_NLE.sum(0)
        return np.asarray(slots_LE / np.maximum(slots_LE.sum(-1, keepdims=True), 1))

    @property
    def importance_LE(self) -> np.ndarray:
        """Mean router probability per expert; sums to 1 in each layer."""
        return np.asarray(self.probability_NLE.sum(0) / self.positions_N.sum())

    @property
    def weight_LE(self) -> np.ndarray:
        """Mean weight of an expert where it was chosen; NaN for one never chosen."""
        slots_LE = self.slots_NLE.sum(0)
        return np.where(slots_LE > 0, self.weights_NLE.sum(0) / np.maximum(slots_LE, 1), np.nan)

    @property
    def entropy_L(self) -> np.ndarray:
        """Mean entropy per position, nats; log E for a router that does not decide."""
        return np.asarray(self.entropy_NL.sum(0) / self.positions_N.sum())


def collect(routing: Routing, blocks: int) -> Usage:
    """Sum what the last forward pass recorded over the positions of each of its B blocks.

    Where tokens skip a layer, its experts' slots and weights are those of the tokens that run; probabilities and entropy are the mean of these, times the positions.
    """
    slots: list[Tensor] = []
    weights: list[Tensor] = []
    probabilities: list[Tensor] = []
    entropies: list[Tensor] = []
    positions = 0
    for index, (part, skip) in enumerate(zip(routing.layers, routing.skips, strict=True)):
        if skip is not None:
            positions = len(skip.kept_T) // blocks
            sums = _some(routing, index, part.router.weight.shape[0], skip.index_K, blocks, positions)
            for found, value in zip((slots, weights, probabilities, entropies), sums, strict=True):
                found.append(value)
            continue
        logits_TE = routing.logits[index].detach().float()
        experts, positions = logits_TE.shape[-1], len(logits_TE) // blocks
        log_BTE = log_probabilities(logits_TE, part.family.scores).view(blocks, -1, experts)
        chosen_BS = routing.indices[index].reshape(blocks, -1)
        weight_BS = routing.weights[index].detach().reshape(blocks, -1).float()
        empty_BE = torch.zeros(blocks, experts, device=logits_TE.device)
        slots.append(empty_BE.scatter_add(1, chosen_BS, torch.ones_like(weight_BS)))
        weights.append(empty_BE.scatter_add(1, chosen_BS, weight_BS))
        probabilities.append(log_BTE.exp().sum(1))
        entropies.append(-(log_BTE.exp() * log_BTE).sum((1, 2)))
    stacked = [
        torch.stack(part, dim=1).cpu().double().numpy() for part in (slots, weights, probabilities, entropies)
    ]
    return Usage(stacked[0], stacked[1], stacked[2], stacked[3], np.full(blocks, positions))


def log_probabilities(logits_TE: Tensor, scores: str) -> Tensor:
    """Logarithms of the router's distribution over all experts, as in training (train/balance/base.py): softmax, or sigmoids over their sum."""
    if scores == "sigmoid":
        log_TE = functional.logsigmoid(logits_TE)
        return log_TE - log_TE.logsumexp(-1, keepdim=True)
    return logits_TE.log_softmax(-1)


def _some(
    routing: Routing, index: int, experts: int, index_K: Tensor, blocks: int, positions: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slots, weights, probabilities [B, E] and entropy [B] of a layer that only the tokens `index_K` ran through."""
    empty_BE = torch.zeros(blocks, experts, device=index_K.device)
    if not len(index_K):
        return empty_BE, empty_BE, empty_BE, empty_BE[:, 0]
    block_K = index_K // positions
    logits_KE = routing.logits[index].detach().float()
    log_KE = log_probabilities(logits_KE, routing.layers[index].family.scores)
    weight_KC = routing.weights[index].detach().float()
    weight_KE = torch.zeros_like(logits_KE).scatter(1, routing.indices[index], weight_KC)
    slot_KE = torch.zeros_like(logits_KE).scatter(1, routing.indices[index], 1.0)
    scale_B = positions / torch.bincount(block_K, minlength=blocks).clamp_min(1)
    probability_BE = empty_BE.index_add(0, block_K, log_KE.exp()) * scale_B[:, None]
    entropy_B = empty_BE[:, 0].index_add(0, block_K, -(log_KE.exp() * log_KE).sum(1)) * scale_B
    return (
        empty_BE.index_add(0, block_K, slot_KE),
        empty_BE.index_add(0, block_K, weight_KE),
        probability_BE,
        entropy_B,
    )


def join(parts: list[Usage]) -> Usage:
    """Usage of several batches, block after block."""
    names = ("slots_NLE", "weights_NLE", "probability_NLE", "entropy_NL", "positions_N")
    return Usage(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def load_cv(load_LE: np.ndarray) -> np.ndarray:
    """Coefficient of variation of the load over experts: 0 when balanced, sqrt(E - 1) when one expert gets everything. [..., L]"""
    return np.asarray(load_LE.std(-1) / np.maximum(load_LE.mean(-1), 1e-12))


def mean_load_cv(usage: Mapping[str, Usage], resamples: int, seed: int) -> bootstrap.Estimate:
    """Load CV of all domains together (each counts the same), mean over layers; blocks are resampled within domains.

    Resampling adds noise of its own to a spread, which would push all resampled CVs up; the interval is the basic (reflected)
    one, which takes that bias off again.
    """
    rng = bootstrap.generator(seed, "routing/load_cv")
    samples_RLE: np.ndarray | float = 0.0
    for item in usage.values():
        n, layers, experts = item.slots_NLE.shape
        sums_RC = bootstrap.resampled_sums(item.slots_NLE.reshape(n, -1).T, resamples, rng)
        sums_RLE = sums_RC.reshape(resamples, layers, experts)
        samples_RLE = samples_RLE + sums_RLE / np.maximum(sums_RLE.sum(-1, keepdims=True), 1) / len(usage)
    value = float(load_cv(np.mean([item.load_LE for item in usage.values()], axis=0)).mean())
    n = sum(len(item.positions_N) for item in usage.values())
    if all(len(item.positions_N) < 2 for item in usage.values()):
        return bootstrap.Estimate(value, None, None, n)
    low, high = bootstrap.interval(load_cv(np.asarray(samples_RLE)).mean(-1))
    return bootstrap.Estimate(value, max(0.0, 2 * value - high), max(0.0, 2 * value - low), n)


def normalised_entropy(usage: Mapping[str, Usage], resamples: int, seed: int) -> bootstrap.Estimate:
    """Router entropy over log E, mean over layers and domains: 1 for a router that does not decide."""
    rng = bootstrap.generator(seed, "routing/entropy")
    most = math.log(next(iter(usage.values())).slots_NLE.shape[-1]) or 1.0
    return bootstrap.macro(
        [(item.entropy_NL.mean(1) / most, item.positions_N) for item in usage.values()], resamples, rng
    )


def write(path: Path, usage: Mapping[str, Usage], numbers: Sequence[int], places: int = 6) -> None:
    """Parquet of domain, layer (the decoder layer's number, from `numbers`), expert, load, importance, weight (mean where chosen), entropy (of the layer, nats; / log E: normalised)."""
    columns: dict[str, list[object]] = {
        name: []
        for name in (
            "domain",
            "layer",
            "expert",
            "load",
            "importance",
            "weight",
            "entropy",
            "entropy_normalised",
        )
    }
    for domain, item in usage.items():
        load_LE, importance_LE, weight_LE, entropy_L = (
            item.load_LE,
            item.importance_LE,
            item.weight_LE,
            item.entropy_L,
        )
        layers, experts = load_LE.shape
        most = math.log(experts) or 1.0
        for layer in range(layers):
            for expert in range(experts):
                weight = float(weight_LE[layer, expert])
                row = (
                    domain, numbers[layer], expert, round(float(load_LE[layer, expert]), places), round(float(importance_LE[layer, expert]), places),
                    None if math.isnan(weight) else round(weight, places), round(float(entropy_L[layer]), places),
                    round(float(entropy_L[layer]) / most, places),
                )  # fmt: skip
                for name, value in zip(columns, row, strict=True):
                    columns[name].append(value)
    with files.atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
