"""What a stage minimises: next-token cross entropy, a distillation loss (distill/losses), balance terms. One convention for all stages.

A batch's `targets_BT` holds the next token at each position, or -100 where no loss falls. Token terms are summed over the positions
of the micro-batch and divided by the number of targets in the whole step (all micro-batches, all ranks), so that neither gradient
accumulation nor the number of ranks changes the loss.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.distill.losses import METHODS, OPTIONS, Text, base
from moesaic.distill.teachers import Taught, Teacher
from moesaic.model import families
from moesaic.model.adapters import sequence
from moesaic.model.adapters.layout import ImageTokens
from moesaic.model.depth import skip
from moesaic.model.depth.steer import Steering, ran, valid
from moesaic.train.chunked import CHUNK, CrossEntropy, chunked_loss
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
    taught: Taught | None = None
    """The teacher's probabilities at the target positions, where they come from a cache."""
    progress: float = 0.0
    """Share of the stage's steps that are done."""
    rows_BT: Tensor | None = None
    """Row of each token where several share a sequence (packing), any number at padding; None: sequence b is row b."""

    @property
    def inputs(self) -> dict[str, Tensor | None]:
        """What a decoder is called with. Where positions tell rows or documents apart, padding is apart, too: there is no mask beside them."""
        mask = self.mask_BT if self.positions_BT is None else None
        return {"input_ids": self.ids_BT, "attention_mask": mask, "position_ids": self.positions_BT}

    def hidden(self, model: Any) -> Tensor:
        """Last hidden states [B, T, D] of a causal model on this batch, before the output head."""
        found: Tensor = model.base_model(**self.inputs, use_cache=False).last_hidden_state
        return found

    def row_of(self, where_BT: Tensor) -> Tensor:
        """Row of each of the positions [N]."""
        return where_BT.nonzero()[:, 0] if self.rows_BT is None else self.rows_BT[where_BT]


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms."""

    balance: float = 0.0
    z: float = 0.0
    kl: float = 0.0
    """Share of the distillation loss (forward KL to the teacher by default); cross entropy has the rest."""
    temperature: float = 1.0
    router: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    """schema.RouterTraining as a dict."""
    depth: Mapping[str, Any] | None = None
    """schema.Skip as a dict, to train depth routers; None: they decide as at inference."""
    loss: str = "kd"
    """Distillation loss, a key of distill.losses.METHODS."""
    options: Mapping[str, Any] = field(default_factory=lambda: OPTIONS)
    """schema.LossOptions as a dict."""
    student_text: tuple[str, ...] = ()
    """Domains whose text the student wrote."""


TELEMETRY = ("forward_kl_B", "reverse_kl_B", "entropy_B")
"""Measured in evaluation mode beside a teacher: KL(p ; q), KL(q ; p) and the student's entropy, summed per row, at temperature 1."""


class Trainee(nn.Module):
    """The model with its loss: all of it runs in `forward`, which is what DDP, FSDP and DeepSpeed need.

    Returns the loss and detached statistics: nll_B and distill_B (sums per row), targets_B, modality (see `by_modality`), balance, z, load_LE, entropy, dropped; in evaluation
    mode beside a teacher also TELEMETRY, while the distillation loss itself is left out; of steered depth routers depth_loss, depth_agreement and
    depth_L4 (counts, see steer.Terms); in evaluation mode ran_L2 of all of them.
    """

    ROWS: tuple[str, ...] = ()
    """Statistics `row/NAME` with one value per row, whose means are logged in training and validation."""

    def __init__(self, model: nn.Module, weights: Weights, teacher: nn.Module | None = None):
        """Args: teacher: a model, or a Teacher; None without one, or where batches bring what it said."""
        super().__init__()
        self.model, self.weights = model, weights
        self.images: ImageTokens | None = None
        """Image tokens, whose losses are told apart from those of text."""
        self.moe = bool(list(families.parts(model)))
        self.policy = Policy(model, weights.router) if self.moe else None
        self.depth = (
            Steering(model, weights.depth) if weights.depth is not None and skip.routed(model) else None
        )
        self.routed = skip.routed(model)
        """Layers with a depth router, steered or not."""
        self._valid_T: Tensor | None = None
        # The teacher is no submodule: it is neither trained, wrapped nor saved.
        own = teacher if teacher is None or isinstance(teacher, Teacher) else Teacher(teacher)
        object.__setattr__(self, "teacher", own)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model: Any = self.model
        hidden = self.hidden(batch)
        where = batch.targets_BT != IGNORE
        if self.images is not None:
            sequence.check_adapted(model, batch.targets_BT)
        taught = self._taught(batch, where)
        names = ("nll_B", "distill_B", *(TELEMETRY if taught is not None and not self.training else ()))
        # beside a teacher several matrices of a chunk's size are alive at once
        chunk = CHUNK if taught is None else CHUNK // 4
        total, token = chunked_loss(
            hidden[where],
            model.get_output_embeddings().weight,
            self._token_loss(batch, where, taught),
            chunk,
        )
        loss = total / batch.step_targets
        rows = batch.row_of(where)
        counts = torch.zeros(len(batch.domains), dtype=torch.long, device=rows.device)
        statistics = {"targets_B": counts.index_add_(0, rows, torch.ones_like(rows))}
        for index, name in enumerate(names):
            statistics[name] = torch.zeros(len(batch.domains), device=hidden.device).index_add_(
                0, rows, token[:, index]
            )
        if self.images is not None:
            statistics["modality"] = by_modality(token[:, 0], batch.targets_BT[where], self.images)
        return self.with_router_terms(loss, statistics, batch.share)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [B, T, D]; the routers' decisions are recorded for `with_router_terms`."""
        if self.policy is not None:
            valid_T = None if batch.mask_BT is None else batch.mask_BT.flatten().bool()
            self.policy.begin(valid_T, batch.seed)
        if self.depth is not None:
            self.depth.begin(batch.mask_BT, batch.ids_BT, batch.seed, self.training)
        elif self.routed:
            self._valid_T = valid(batch.mask_BT, batch.ids_BT)
        return batch.hidden(self.model)

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
        if self.depth is not None:
            statistics["ran_L2"] = statistics["depth_L4"][:, 2:]
        elif self._valid_T is not None and not self.training:
            statistics["ran_L2"] = ran(list(self.routed.values()), self._valid_T)
        return loss, statistics

    @contextlib.contextmanager
    def untaught(self) -> Iterator[None]:
        """Without its teacher: for passes whose losses nobody reads."""
        teacher = self.teacher
        object.__setattr__(self, "teacher", None)
        try:
            yield
        finally:
            object.__setattr__(self, "teacher", teacher)

    def _taught(self, batch: Batch, where_BT: Tensor) -> Taught | None:
        """What the teacher says; None when nobody asks."""
        asked = not self.training or (self.weights.kl > 0 and METHODS[self.weights.loss].teacher)
        if not asked or batch.taught is not None:
            return batch.taught if asked else None
        teacher: Teacher | None = self.teacher  # type: ignore[assignment]
        return teacher.taught(batch, where_BT) if teacher is not None else None

    def _token_loss(self, batch: Batch, where_BT: Tensor, taught: Taught | None) -> Any:
        """Cross entropy and distillation loss of a chunk of logits, see chunked.TokenLoss."""
        targets_N = batch.targets_BT[where_BT]
        weights = self.weights
        method = METHODS[weights.loss]
        own = torch.tensor([name in weights.student_text for name in batch.domains], device=targets_N.device)
        own_N = own[batch.row_of(where_BT)] if weights.student_text else None

        alone = weights.kl == 0 or not self.training or not method.teacher
        # without a teacher the distillation losses are cross entropy themselves
        nothing = weights.kl == 0 or not self.training

        def columns(nll_N: Tensor) -> list[Tensor]:
            return [nll_N, torch.zeros_like(nll_N) if nothing else nll_N]

        if alone and (taught is None or self.training):
            return CrossEntropy(targets_N, columns)

        def loss(logits_NV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
            nll_N = functional.cross_entropy(logits_NV, targets_N[chunk], reduction="none")
            if alone:
                assert taught is not None
                found = columns(nll_N) + _telemetry(logits_NV, chunk, taught)
                return nll_N.sum(), torch.stack(found, dim=1)
            assert taught is not None, f"the loss {weights.loss} needs a teacher"
            seen = taught.compare(logits_NV, chunk, weights.temperature)
            text = Text(
                nll_N,
                taught.nll(targets_N[chunk], chunk) if method.text else None,
                own_N[chunk] if own_N is not None else None,
                batch.progress,
                seen.rest,
                seen.weight_NS,
            )
            found_N = (
                method.loss(seen.log_q_NC, seen.log_p_NC, text, weights.options) * weights.temperature**2
            )
            total = (1 - weights.kl) * nll_N.sum() + weights.kl * found_N.sum()
            return total, torch.stack([nll_N, found_N], dim=1)

        return loss


def by_modality(nll_N: Tensor, targets_N: Tensor, tokens: ImageTokens) -> Tensor:
    """Sum of losses and number of targets: of image codes, then of text; what begins and ends an image is neither [4]."""
    image_N, text_N = tokens.is_code(targets_N), tokens.is_text(targets_N)
    return torch.stack([nll_N[image_N].sum(), image_N.sum(), nll_N[text_N].sum(), text_N.sum()])


def _telemetry(logits_NV: Tensor, chunk: slice, taught: Taught) -> list[Tensor]:
    """Forward KL, reverse KL and the student's entropy of each position, nats [n]."""
    seen = taught.compare(logits_NV, chunk, 1.0)
    log_q_NV = functional.log_softmax(logits_NV, dim=1)
    return [
        base.kl(seen.log_p_NC, seen.log_q_NC, seen.weight_NS),
        base.kl(seen.log_q_NC, seen.log_p_NC, seen.weight_NS),
        -(log_q_NV.exp() * log_q_NV).sum(dim=1),
    ]
