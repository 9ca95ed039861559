"""What a stage minimises: next-token cross entropy, KL to a teacher, balance terms. One convention for all stages.

A batch's `targets_BT` holds the next token at each position, or -100 where no loss falls. Token terms are summed over the positions
of the micro-batch and divided by the number of targets in the whole step (all micro-batches, all ranks), so that neither gradient
accumulation nor the number of ranks changes the loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.model import families
from moesaic.model.depth import skip
from moesaic.model.depth.steer import Steering
from moesaic.train.chunked import chunked_loss
from moesaic.train.policy import DEFAULTS, Policy

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank."""

    ids_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor | None
    """1 for tokens, 0 for padding; None when there is none."""
    domains: list[str]
    """Domain of each row."""
    step_targets: int
    """Targets in the whole optimizer step, over all ranks."""
    share: float
    """This micro-batch's share of the step's rows, for the terms that are means over tokens (balance)."""
    seed: int = 0
    """Of the routers' noise."""
    positions_BT: Tensor | None = None
    """Place of each token in its document: where it does not follow on, attention does not look back (transformers' packed sequences)."""


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms."""

    balance: float = 0.0
    z: float = 0.0
    kl: float = 0.0
    """Share of KL to the teacher; cross entropy has the rest."""
    temperature: float = 1.0
    router: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    """schema.RouterTraining as a dict."""
    depth: Mapping[str, Any] | None = None
    """schema.Skip as a dict, to train depth routers; None: they decide as at inference."""


class Trainee(nn.Module):
    """The model with its loss: all of it runs in `forward`, which is what DDP, FSDP and DeepSpeed need.

    Returns the loss and detached statistics: nll_B and kl_B (sums per row), targets_B, balance, z, load_LE, entropy, dropped;
    of depth routers depth_loss, depth_agreement and depth_L4 (counts, see steer.Terms).
    """

    ROWS: tuple[str, ...] = ()
    """Statistics `row/NAME` with one value per row, whose means are logged in training and validation."""

    def __init__(self, model: nn.Module, weights: Weights, teacher: nn.Module | None = None):
        super().__init__()
        self.model, self.weights = model, weights
        self.moe = bool(list(families.parts(model)))
        self.policy = Policy(model, weights.router) if self.moe else None
        self.depth = (
            Steering(model, weights.depth) if weights.depth is not None and skip.routed(model) else None
        )
        # The teacher is no submodule: it is neither trained, wrapped nor saved.
        object.__setattr__(self, "teacher", teacher)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model: Any = self.model
        hidden = self.hidden(batch)
        where = batch.targets_BT != IGNORE
        total, token = chunked_loss(
            hidden[where], model.get_output_embeddings().weight, self._token_loss(batch, where)
        )
        loss = total / batch.step_targets
        rows = where.nonzero()[:, 0]
        statistics = {"targets_B": where.sum(dim=1)}
        for index, name in enumerate(("nll_B", "kl_B")):
            statistics[name] = torch.zeros(len(batch.domains), device=hidden.device).index_add_(
                0, rows, token[:, index]
            )
        return self.with_router_terms(loss, statistics, batch.share)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [B, T, D]; the routers' decisions are recorded for `with_router_terms`."""
        model: Any = self.model
        if self.policy is not None:
            valid_T = None if batch.mask_BT is None else batch.mask_BT.flatten().bool()
            self.policy.begin(valid_T, batch.seed)
        if self.depth is not None:
            self.depth.begin(batch.mask_BT, batch.ids_BT, batch.seed, self.training)
        found: Tensor = model.base_model(
            input_ids=batch.ids_BT,
            attention_mask=batch.mask_BT,
            position_ids=batch.positions_BT,
            use_cache=False,
        ).last_hidden_state
        return found

    def with_router_terms(
        self, loss: Tensor, statistics: dict[str, Tensor], share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the balance and z losses of the last forward pass, and its routing figures."""
        if self.policy is not None:
            terms = self.policy.terms()
            loss = loss + share * (self.weights.balance * terms.balance + self.weights.z * terms.z)
            statistics |= {
                "balance": terms.balance.detach(),
                "z": terms.z.detach(),
                "load_LE": terms.load_LE,
                "entropy": terms.entropy,
                "dropped": self.policy.dropped,
            }
        if self.depth is not None:
            depth = self.depth.terms()
            loss = loss + share * self.depth.settings["loss"] * depth.loss
            statistics |= {
                "depth_loss": depth.loss.detach(),
                "depth_agreement": depth.agreement,
                "depth_L4": depth.counts_L4,
            }
        return loss, statistics

    def _token_loss(self, batch: Batch, where_BT: Tensor) -> Any:
        """Cross entropy and forward KL of a chunk of logits, see chunked.TokenLoss."""
        targets_N = batch.targets_BT[where_BT]
        kl_share, temperature = self.weights.kl, self.weights.temperature
        teacher: Any = self.teacher
        if teacher is not None and kl_share > 0:
            with torch.no_grad():
                hidden = teacher.base_model(
                    input_ids=batch.ids_BT,
                    attention_mask=batch.mask_BT,
                    position_ids=batch.positions_BT,
                    use_cache=False,
                ).last_hidden_state
                taught_ND = hidden[where_BT]
            head = teacher.get_output_embeddings().weight

        def loss(logits_NV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
            nll_N = functional.cross_entropy(logits_NV, targets_N[chunk], reduction="none")
            if teacher is None or kl_share == 0:
                return nll_N.sum(), torch.stack([nll_N, torch.zeros_like(nll_N)], dim=1)
            with torch.no_grad():
                taught_NV = functional.linear(taught_ND[chunk], head).float()
            kl_N = forward_kl(logits_NV, taught_NV, temperature)
            total = (1 - kl_share) * nll_N.sum() + kl_share * kl_N.sum()
            return total, torch.stack([nll_N, kl_N], dim=1)

        return loss


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    """KL(teacher ; student) per position, times temperature^2 (Hinton et al., arXiv 1503.02531), nats [N]."""
    student = functional.log_softmax(student_NV / temperature, dim=1)
    teacher = functional.log_softmax(teacher_NV / temperature, dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1) * temperature**2
