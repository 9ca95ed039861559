"""Pairs of answers as training data: files, batches, and the model with a pair loss.

Shapes: B pairs, R = 2 B rows of a batch (all chosen answers, then all rejected ones), T tokens, N answer tokens, D model width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.data.sampler import Sample
from moesaic.errors import InputError
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.generate.sample import seed_of
from moesaic.train import pair_losses, streams
from moesaic.train.chunked import chunked_loss
from moesaic.train.objectives import IGNORE, Batch, Trainee, Weights
from moesaic.train.streams import Row
from moesaic.train.sums import ROW


@dataclass(frozen=True)
class PairRow:
    """A chosen and a rejected answer to one prompt."""

    chosen: Row
    rejected: Row
    reference: tuple[float, float]
    """Summed log-probabilities of the two under the reference model, nats."""

    @property
    def ids(self) -> np.ndarray:
        """The tokens that are read, of both."""
        return np.concatenate([self.chosen.ids, self.rejected.ids])


@dataclass(frozen=True)
class PairBatch(Batch):
    """A micro-batch; `domains` has one entry per pair, the tensors have two rows."""

    reference_B2: Tensor | None = None


def read(steps: Iterable[Manifest], file: str, model: Any, name: str) -> list[dict[str, Any]]:
    """Records of all shards by id, so that neither the number of shards nor their order has a part in what is drawn.

    Args:
        name: of the step, for messages.

    Raises:
        InputError: a damaged file, or one of another vocabulary than the model's.
    """
    records: list[dict[str, Any]] = []
    for step in steps:
        manifest.verify(step)
        streams.check_vocabulary(step, model, name)
        records += files.read_lines(step.folder / file)
    return ordered(records)


def ordered(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by id."""
    return sorted(records, key=lambda record: record["id"])


def set_steps(settings: dict[str, Any], count: int) -> None:
    """Put `steps` for so many epochs over `count` records into a stage's settings, where `epochs` says so."""
    if settings["epochs"] is not None:
        settings["steps"] = math.ceil(settings["epochs"] * count / settings["batch"])


def added(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of all shards added up, key by key; a shard may lack keys that others have."""
    out: dict[str, Any] = {}
    for key in dict.fromkeys(key for shard in shards for key in shard):
        values = [shard[key] for shard in shards if key in shard]
        total = added(values) if isinstance(values[0], Mapping) else sum(values)
        out[key] = round(total, 6) if isinstance(total, float) else total
    return out


def answer_row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    """A prompt and its answer; a target at every answer token."""
    ids = np.asarray([*prompt, *answer], dtype=np.int64)
    targets = np.full(len(ids), IGNORE, dtype=np.int64)
    targets[len(prompt) - 1 : -1] = answer
    return Row(ids, targets)


class PairStream:
    """Pairs by domain, from records {id, domain, prompt, chosen: {ids, logp}, rejected: {ids, logp}}."""

    def __init__(self, records: Iterable[Mapping[str, Any]]):
        self.pairs: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            self.pairs.setdefault(record["domain"], []).append(record)
        self.sizes = {name: len(items) for name, items in sorted(self.pairs.items())}

    def rows(self, samples: Sequence[Sample]) -> list[Any]:
        return [self._row(self.pairs[sample.domain][sample.row]) for sample in samples]

    def _row(self, record: Mapping[str, Any]) -> Any:
        chosen, rejected = record["chosen"], record["rejected"]
        return PairRow(
            answer_row(record["prompt"], chosen["ids"]),
            answer_row(record["prompt"], rejected["ids"]),
            (chosen["logp"], rejected["logp"]),
        )


class ChosenStream(PairStream):
    """The chosen answers alone, as rows of supervised fine-tuning: the baseline that the pairs have to beat."""

    def _row(self, record: Mapping[str, Any]) -> Any:
        return answer_row(record["prompt"], record["chosen"]["ids"])


def count(rows: Sequence[PairRow]) -> int:
    """What the loss is a mean over: pairs."""
    return len(rows)


def collate(
    rows: Sequence[PairRow],
    domains: list[str],
    step_pairs: int,
    share: float,
    device: torch.device,
    more: Sequence[Row] = (),
) -> PairBatch:
    """Both answers of all pairs in one batch, then `more` rows, padded on the right."""
    flat = [row.chosen for row in rows] + [row.rejected for row in rows] + [*more]
    plain = streams.collate(flat, domains, step_pairs, share, device)
    reference_B2 = torch.tensor([row.reference for row in rows], dtype=torch.float64)
    return PairBatch(**vars(plain), reference_B2=reference_B2.to(device, torch.float32))


class PairTrainee(Trainee):
    """The model with a pair loss, averaged over the pairs of the step, and the router's terms.

    Statistics beside the Trainee's (of the chosen answers: nll_B, targets_B): `row/...` [B], means of which are logged: rewards are beta
    times the log ratio to the reference, logp is per token.
    """

    ROWS: tuple[str, ...] = (
        "loss/pair",
        "reward/chosen",
        "reward/rejected",
        "reward/margin",
        "reward/accuracy",
        "logp/chosen",
        "logp/rejected",
    )

    def __init__(self, model: nn.Module, weights: Weights, loss: str, options: Mapping[str, Any]):
        """Args: loss: of pair_losses.METHODS. options: beta, label_smoothing, length_normalised, nll (weight of the chosen answers' mean NLL)."""
        super().__init__(model, weights)
        self.loss, self.options = pair_losses.METHODS[loss], dict(options)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, PairBatch)
        assert batch.reference_B2 is not None
        model: Any = self.model
        where_RT = batch.targets_BT != IGNORE
        hidden_ND = self.hidden(batch)[where_RT]
        head_VD = model.get_output_embeddings().weight
        row_N, targets_N = where_RT.nonzero()[:, 0], batch.targets_BT[where_RT]
        length_R = where_RT.sum(dim=1)

        def nll(logits_NV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            value_N = functional.cross_entropy(logits_NV, targets_N[part], reduction="none")
            return value_N.sum(), value_N[:, None]

        with torch.no_grad():
            _, nll_N1 = chunked_loss(hidden_ND, head_VD, nll)
        policy_R = nll_N1.new_zeros(len(length_R)).index_add_(0, row_N, -nll_N1[:, 0])
        # The loss is no sum over tokens, but its gradient is: dL/d(logits) = dL/d(log p of the row) * d(log p of the token)/d(logits).
        # So the logits are made a second time with these weights, and never all at once.
        with torch.enable_grad():
            policy_R = policy_R.requires_grad_()
            loss, rows = self._loss(policy_R, length_R, batch)
            (weight_R,) = torch.autograd.grad(loss, policy_R)
        loss = loss.detach()
        if torch.is_grad_enabled():
            weight_N = weight_R[row_N]

            def weighted(logits_NV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
                value_N = functional.cross_entropy(logits_NV, targets_N[part], reduction="none")
                return -(weight_N[part] * value_N).sum(), value_N[:, None]

            total, _ = chunked_loss(hidden_ND, head_VD, weighted)
            loss = total + (loss - total.detach())
        pairs = len(batch.domains)
        statistics = rows | {
            "nll_B": -policy_R.detach()[:pairs],
            "distill_B": torch.zeros(pairs, device=loss.device),
            "targets_B": length_R[:pairs],
        }
        return self.with_router_terms(loss, statistics, batch.share)

    def _loss(self, policy_R: Tensor, length_R: Tensor, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the micro-batch (scalar) and what is logged of each pair."""
        assert batch.reference_B2 is not None
        (chosen_B, rejected_B), (more_B, less_B) = policy_R.view(2, -1), length_R.view(2, -1)
        pairs = pair_losses.Pairs(
            chosen_B, rejected_B, batch.reference_B2[:, 0], batch.reference_B2[:, 1], more_B, less_B
        )
        loss_B = self.loss(pairs, self.options)
        nll_B = -chosen_B / more_B
        total = (loss_B + self.options["nll"] * nll_B).sum() / batch.step_targets
        won_B, lost_B = (
            self.options["beta"] * ratio_B.detach()
            for ratio_B in pair_losses.log_ratios(pairs, self.options["length_normalised"])
        )
        values = (
            loss_B.detach(), won_B, lost_B, won_B - lost_B, (won_B > lost_B).float(), -nll_B.detach(),
            (rejected_B / less_B).detach(),
        )  # fmt: skip
        return total, {ROW + name: value_B for name, value_B in zip(self.ROWS, values, strict=True)}


def split(records: Sequence[dict[str, Any]], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Training and validation pairs: the side follows from seed and id alone, in every round; but for one pair that stands in where a side would be empty.

    Raises:
        InputError: fewer than two pairs.
    """
    if len(records) < 2:
        raise InputError(
            f"preference: {len(records)} pairs, at least 2 are needed; raise preference.items or preference.sampling.answers, "
            "or look at the counts of the rate step (a model that is always right or always wrong gives no pairs)"
        )
    place = {item["id"]: seed_of(seed, item["id"], 0) / 2.0**128 for item in records}
    order = sorted(place, key=lambda name: place[name])
    held = sum(at < share for at in place.values())
    chosen = set(order[: min(len(order) - 1, max(1, held))])
    return [r for r in records if r["id"] not in chosen], [r for r in records if r["id"] in chosen]
