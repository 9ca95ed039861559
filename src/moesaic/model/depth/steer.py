"""Depth routers in training: which tokens run, the routers' loss, budgets by layer and how they fall, layer-wise learning rates (DLO, arXiv 2407.11030).

The mean budget falls linearly, rho(t) = 1 - (1 - capacity) min(1, t / anneal). A layer's budget for the next optimizer step is the share of label-1 tokens that
it had in this one, over all micro-batches and all ranks, rescaled to rho: so it is the same on every rank and does not depend on accumulation. Its state is in
the routers' buffers, so that checkpoints hold it; rho follows from the step alone.

Shapes: B sequences, T tokens of the micro-batch, L layers with a router, P labelled tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.model.depth import skip
from moesaic.model.depth.labels import METHODS, quota

COUNTS = ("labels", "labelled", "ran", "seen")


@dataclass(frozen=True)
class Terms:
    """Of one forward pass."""

    loss: Tensor
    """Mean binary cross entropy of router and label; 0 in evaluation."""
    counts_L4: Tensor
    """Tokens by layer: label 1, labelled, ran, seen; padding is none of them."""
    agreement: Tensor
    """Share of the labels that the router's threshold agrees with."""


class Steering:
    """Steers the routers of a model; without it a skipping model does in training what it does at inference."""

    def __init__(self, model: Any, settings: Mapping[str, Any]):
        """Args: settings: schema.Skip as a dict."""
        self.settings = settings
        found = skip.routed(model)
        self.index, self.skips = list(found), list(found.values())
        self.model = model
        self.target = annealed(0, settings["capacity"], settings["anneal"])
        self.valid_T: Tensor | None = None
        self.active = False
        for item in self.skips:
            item.select = self._select

    def begin_step(self, step: int) -> None:
        """Before the micro-batches of an optimizer step, counted from 0."""
        self.target = annealed(step, self.settings["capacity"], self.settings["anneal"])

    def begin(self, mask_BT: Tensor | None, like_BT: Tensor, seed: int, training: bool) -> None:
        """Before a forward pass.

        Args:
            mask_BT: 1 for tokens, 0 for padding; None without padding. like_BT: the token ids. seed: of the choice of labelled tokens.
            training: False: the threshold decides, nothing is labelled.
        """
        valid_T = valid(mask_BT, like_BT)
        self.valid_T, self.active = valid_T, training
        probe_T = None
        if training and self.settings["labels"] != "self":
            probe_T = valid_T
            if self.settings["label_share"] < 1:
                index_N = valid_T.nonzero()[:, 0]
                count = max(1, quota(self.settings["label_share"], len(index_N)))
                generator = torch.Generator().manual_seed(seed)
                chosen = torch.randperm(len(index_N), generator=generator)[:count].to(index_N.device)
                probe_T = torch.zeros_like(valid_T).index_fill_(0, index_N[chosen], True)
        for item in self.skips:
            item.recording = probe_T

    def terms(self) -> Terms:
        """Loss and counts of the last forward pass. Layers that compute again for their gradient record nothing any more."""
        assert self.valid_T is not None
        valid_T = self.valid_T
        ran_LT = torch.stack([_kept(item) for item in self.skips]) & valid_T
        counts_L4 = torch.cat(
            [torch.zeros(len(self.skips), 2, device=valid_T.device), ran(self.skips, valid_T)], 1
        )
        nothing = torch.zeros((), device=valid_T.device)
        if not self.active:
            return Terms(nothing, counts_L4, nothing)
        probe_T = valid_T if self.skips[0].recording is None else self.skips[0].recording
        index_P = probe_T.nonzero()[:, 0]
        mu = [_some(item.mu_T)[index_P] for item in self.skips if item.recording is not None]
        ran_LP = ran_LT[:, index_P]
        mu_LP = torch.stack(mu) if mu else torch.zeros_like(ran_LP, dtype=torch.float32)
        labels_LP = METHODS[self.settings["labels"]](mu_LP, ran_LP, self.target, self.budgets())
        logits_LP = torch.stack([_some(item.logits_T)[index_P] for item in self.skips])
        loss = functional.binary_cross_entropy_with_logits(logits_LP, labels_LP)
        counts_L4[:, 0], counts_L4[:, 1] = labels_LP.sum(dim=1), float(len(index_P))
        least = self.skips[0].least
        agreement = ((logits_LP.detach() >= least) == labels_LP.bool()).float().mean()
        for item in self.skips:
            item.recording = item.mu_T = None
        return Terms(loss, counts_L4, agreement)

    def after_step(self, counts_L4: Tensor, step: int) -> None:
        """Budgets of the next step.

        Args:
            counts_L4: of the whole optimizer step, over all ranks. step: the step that was just made, counted from 0.
        """
        counts_L4 = counts_L4.double()
        share_L = (counts_L4[:, 0] / counts_L4[:, 1]).tolist()
        momentum = self.settings["momentum"]
        mixed = [
            momentum * old + (1 - momentum) * new for old, new in zip(self.budgets(), share_L, strict=True)
        ]
        wanted = annealed(step + 1, self.settings["capacity"], self.settings["anneal"])
        self.set_budgets(rescaled(mixed, wanted))

    def budgets(self) -> list[float]:
        """Share of the tokens that run in training, by layer."""
        return [int(_router(item).budget) / skip.UNIT for item in self.skips]

    def set_budgets(self, budgets: list[float]) -> None:
        for item, value in zip(self.skips, budgets, strict=True):
            _router(item).budget.fill_(round(value * skip.UNIT))

    def places(self) -> dict[int, str]:
        """Ids of parameters -> which learning rate they have: `router`, or the number of their skipping layer."""
        found: dict[int, str] = {}
        for index, item in zip(self.index, self.skips, strict=True):
            if self.settings["layer_rates"]:
                found |= {id(p): str(index) for p in self.model.model.layers[index].parameters()}
            found |= {id(p): "router" for p in _router(item).parameters()}
        return found

    def factors(self, rate: float) -> dict[str, float]:
        """Place -> factor on the learning rate: budget + 1 - mean budget for a layer (DLO), a rate of their own for the routers.

        Args:
            rate: peak of the stage's schedule.
        """
        budgets = self.budgets()
        mean = sum(budgets) / len(budgets)
        own = self.settings["router_lr"]
        layers = {str(index): value + 1 - mean for index, value in zip(self.index, budgets, strict=True)}
        return layers | {"router": own / rate if own else 1.0}

    def values(self, counts_L4: Tensor) -> dict[str, float]:
        """What is logged of a step; budgets are those with which it was made."""
        ran_L = (counts_L4[:, 2] / counts_L4[:, 3]).tolist()
        found = {"depth/capacity": self.target, "depth/ran": sum(ran_L) / len(ran_L)}
        for index, ran, budget in zip(self.index, ran_L, self.budgets(), strict=True):
            found |= {f"depth/ran/layer_{index}": ran, f"depth/budget/layer_{index}": budget}
        return found

    def _select(self, item: skip.LayerSkip, logits_T: Tensor) -> Tensor:
        """The tokens that run in training: the k = ceil(budget * n) with the highest logits, ties at the k-th included."""
        assert self.valid_T is not None
        valid_T = self.valid_T
        kept_T = valid_T & (logits_T >= item.least)
        if self.settings["selection"] == "threshold" and bool(kept_T.any()):
            return kept_T
        clean_T = logits_T.masked_fill(~valid_T, -torch.inf)
        share = 0.0 if self.settings["selection"] == "threshold" else int(_router(item).budget) / skip.UNIT
        count = max(1, quota(share, int(valid_T.sum())))
        return valid_T & (logits_T >= clean_T.topk(count).values[-1])


def valid(mask_BT: Tensor | None, like_BT: Tensor) -> Tensor:
    """Which tokens are no padding [B * T]. Args: like_BT: the token ids."""
    if mask_BT is None:
        return like_BT.new_ones(like_BT.numel(), dtype=torch.bool)
    return mask_BT.flatten().bool()


def ran(skips: Sequence[skip.LayerSkip], valid_T: Tensor) -> Tensor:
    """Tokens that ran in the last forward pass, and all of them, by layer [L, 2]; padding is none of them."""
    ran_LT = torch.stack([_kept(item) for item in skips]) & valid_T
    return torch.stack([ran_LT.sum(dim=1), valid_T.sum().expand(len(skips))], dim=1).float()


def annealed(step: int, capacity: float, anneal: int) -> float:
    """Mean budget of a step: from 1 down to `capacity` in `anneal` steps, linearly."""
    return capacity if step >= anneal else 1.0 - (1.0 - capacity) * step / anneal


def rescaled(budgets: list[float], mean: float) -> list[float]:
    """Budgets in proportion, with this mean; none above 1: what is cut off there goes to the others."""
    found = dict(enumerate(budgets))
    full: set[int] = set()
    while True:
        room = mean * len(budgets) - len(full)
        rest = {index: value for index, value in found.items() if index not in full}
        total = sum(rest.values())
        if not rest:
            return [1.0] * len(budgets)
        factor = room / total if total > 0 else 0.0
        over = {index for index, value in rest.items() if value * factor > 1.0}
        if not over:
            level = room / len(rest)
            return [
                1.0 if index in full else (found[index] * factor if total > 0 else level)
                for index in range(len(budgets))
            ]
        full |= over


def freeze(model: Any, trained: str) -> None:
    """Leave only some parameters trainable: `all`, the depth `routers` (Router-Tuning, arXiv 2410.13184), or the `inserted` layers and all depth routers."""
    if trained == "all":
        return
    wanted: list[nn.Module] = [_router(item) for item in skip.routed(model).values()]
    if trained == "inserted":
        wanted += [model.model.layers[index] for index in model.config.inserted_layers]
    model.requires_grad_(False)
    for module in wanted:
        module.requires_grad_(True)


def _router(item: skip.LayerSkip) -> Any:
    assert item.router is not None
    return item.router


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _kept(item: skip.LayerSkip) -> Tensor:
    return _some(item.kept_T)
