"""Which text the statistics are taken on, and the activations of a layer on it, batch by batch.

Shapes: N blocks, T tokens of a block, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.data import packed
from moesaic.errors import InputError
from moesaic.experts.assignment import generator
from moesaic.experts.features import Activations, Ffn
from moesaic.flow import manifest
from moesaic.flow.manifest import Manifest

CACHE_BYTES = 2 * 2**30
"""Activations of a layer are kept between passes up to this size, and computed again beyond it."""


@dataclass(frozen=True)
class Text:
    """Calibration blocks, ordered by fold, held-out ones last."""

    ids_NT: Tensor
    fold_N: Tensor
    """Group of each block, for choices by leaving one out; -1 for held-out blocks."""
    domain_N: Tensor
    domains: list[str]

    @property
    def fitted(self) -> int:
        """Number of blocks that fits may use."""
        return int((self.fold_N >= 0).sum())


def blocks(tokens: Manifest, held_out: list[str], settings: dict[str, Any], seed: int) -> Text:
    """Training blocks, shared evenly by the trained domains, chosen at random.

    Raises:
        InputError: every domain is held out, or a domain has less text than asked for.
    """
    domains = [name for name in packed.domains(tokens) if name not in held_out]
    if not domains:
        raise InputError("data.domains: every domain is held out, none is left for calibration")
    manifest.verify(tokens, only=[f"{name}.train" for name in domains])
    length = tokens.metrics["block"]
    each = round(settings["tokens"] / length / len(domains))
    kept_out = max(1, round(settings["holdout"] * each)) if settings["holdout"] else 0
    if each - kept_out < 2:
        raise InputError(
            f"experts.calibration.tokens: {settings['tokens']} tokens are {each} blocks of {length} for each of {len(domains)} domains, "
            f"{kept_out} of them held out: too short for the statistics; take at least {len(domains) * (kept_out + 2) * length}"
        )
    ids, fold, domain = [], [], []
    for index, name in enumerate(domains):
        stored = packed.open_blocks(tokens, name, "train")
        if len(stored) < each:
            raise InputError(
                f"experts.calibration.tokens: {settings['tokens']} tokens take {each} blocks of each domain, {name} has {len(stored)}; "
                "take fewer, or raise data.max_train_tokens"
            )
        rows = torch.randperm(len(stored), generator=generator(seed, index, 3))[:each].tolist()
        ids.append(torch.from_numpy(stored.tokens(rows)).long())
        domain += [index] * each
        for place in range(each):
            fold.append(-1 if place >= each - kept_out else place % settings["folds"])
    fold_N, domain_N, ids_NT = torch.tensor(fold), torch.tensor(domain), torch.cat(ids)
    order = torch.where(fold_N < 0, 10**6, fold_N).argsort(stable=True)
    return Text(ids_NT[order], fold_N[order], domain_N[order], domains)


def batches(fold_N: Tensor, size: int) -> list[slice]:
    """Blocks in batches of one fold each, held-out ones one by one; fold_N must be grouped."""
    found, start = [], 0
    for end in range(1, len(fold_N) + 1):
        most = 1 if fold_N[start] < 0 else size
        if end == len(fold_N) or fold_N[end] != fold_N[start] or end - start == most:
            found.append(slice(start, end))
            start = end
    return found


def finite(h_TF: Tensor) -> Tensor:
    """The activations; raises InputError when some are NaN or infinite."""
    if not torch.isfinite(h_TF).all():
        raise InputError(
            "construct: NaN or infinite activations on the calibration text; the dense parent's weights or the calibration blocks are damaged"
        )
    return h_TF


def relative(stream_TD: Tensor) -> Tensor:
    """1 / RMS of the residual stream [T]: the weight of a token's errors, see Activations.weight_T."""
    return stream_TD.square().mean(dim=1).clamp_min(1e-12).rsqrt()


class LayerActivations:
    """The activations of one layer, as often as wanted; kept in memory when they are small."""

    def __init__(
        self,
        ffn: Ffn,
        norm: Any,
        after_NTD: Tensor,
        fold_N: Tensor,
        parts: list[slice],
        wanted_NTD: Tensor | None = None,
        compensate: float = 0.0,
    ):
        """Activations for hidden states `after_NTD` (after the layer's attention).

        Args:
            wanted_NTD: the dense parent's hidden states after the layer. compensate: how much of the distance to them the layer is to
            make up for; 0 asks for the dense FFN's output on the inputs that it gets.
        """
        self.ffn, self.norm, self.after_NTD, self.fold_N, self.parts = ffn, norm, after_NTD, fold_N, parts
        self.wanted_NTD, self.compensate = wanted_NTD, compensate
        tokens = after_NTD.shape[0] * after_NTD.shape[1]
        self.keep = 4 * tokens * (ffn.width + 2 * after_NTD.shape[2]) <= CACHE_BYTES
        self.kept: dict[int, Activations] = {}

    def at(self, index: int) -> Activations:
        """The activations of a batch. Raises InputError when they are not finite."""
        if index in self.kept:
            return self.kept[index]
        part = self.parts[index]
        x_TD = self.norm(self.after_NTD[part]).flatten(0, 1)
        h_TF = finite(self.ffn.hidden(x_TD))
        own_TD = h_TF @ self.ffn.down_DF.T
        after_TD = self.after_NTD[part].flatten(0, 1)
        weight_T = relative(after_TD + own_TD)
        found = Activations(x_TD, h_TF, int(self.fold_N[part.start]), self._target(own_TD, part), weight_T)
        if self.keep:
            self.kept[index] = found
        return found

    def _target(self, own_TD: Tensor, part: slice) -> Tensor:
        if self.wanted_NTD is None or self.compensate == 0.0:
            return own_TD
        whole_TD = (self.wanted_NTD[part] - self.after_NTD[part]).flatten(0, 1)
        return own_TD + self.compensate * (whole_TD - own_TD)

    def fitting(self) -> "Some":
        """The batches that fits may use."""
        return Some(self, [i for i, part in enumerate(self.parts) if self.fold_N[part.start] >= 0])

    def held_out(self) -> "Some":
        """The batches that no fit sees."""
        return Some(self, [i for i, part in enumerate(self.parts) if self.fold_N[part.start] < 0])


class Some:
    """Some batches of a layer; may be iterated many times."""

    def __init__(self, source: LayerActivations, indices: list[int]):
        self.source, self.indices = source, indices

    def __iter__(self) -> Iterator[Activations]:
        for index in self.indices:
            yield self.source.at(index)

    def __len__(self) -> int:
        return len(self.indices)
