"""The student with a preference loss on pairs of its own and the teacher's text, and what watches over it.

Shapes: B pairs, R rows of a batch: B answers of the teacher, B of the student, and B blocks of the corpus where it has a weight; T tokens.
"""

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moesaic.data.sampler import Sample
from moesaic.distill.losses import PAIRS, dpkd_guarded
from moesaic.errors import InputError
from moesaic.generate.sample import seed_of
from moesaic.train import pairs
from moesaic.train.objectives import Weights
from moesaic.train.pair_losses import Pairs
from moesaic.train.pairs import PairBatch, PairRow
from moesaic.train.streams import Row, Stream
from moesaic.train.sums import ROW

TEXTS = (
    "student_of_teacher_text",
    "student_of_student_text",
    "teacher_of_teacher_text",
    "teacher_of_student_text",
)
DRIFT = "train/pairs/drift"
"""Nats per token that a step's answers of the student have gained since the student gave them (negative: lost), mean."""


@dataclass(frozen=True)
class SampledRow(PairRow):
    """The teacher's answer and the student's."""

    start: float
    """Summed log-probability of the student's answer under the student that gave it, nats."""


@dataclass(frozen=True)
class SampledBatch(PairBatch):
    """A micro-batch of them."""

    start_B: Tensor | None = None


@dataclass(frozen=True)
class CorpusRow(SampledRow):
    """A pair and a block of the corpus beside it."""

    corpus: Row

    @property
    def ids(self) -> np.ndarray:
        """The tokens that are read, of both answers and the block."""
        return np.concatenate([super().ids, self.corpus.ids])


class SampledStream(pairs.PairStream):
    """Pairs, from the records of `pair_scores`."""

    def _row(self, record: Mapping[str, Any]) -> Any:
        return SampledRow(**vars(super()._row(record)), start=record["rejected"]["student"])


class CorpusStream(SampledStream):
    """Pairs, each beside a block of the corpus: of any trained domain, drawn by the seed and the pair's place in its domain."""

    def __init__(self, records: Iterable[Mapping[str, Any]], corpus: Stream, seed: int):
        super().__init__(records)
        self.corpus, self.seed = corpus, seed
        self.domains = sorted(corpus.sizes)
        self.ends = list(itertools.accumulate(corpus.sizes[name] for name in self.domains))

    def rows(self, samples: Sequence[Sample]) -> list[Any]:
        found = []
        for sample, pair in zip(samples, super().rows(samples), strict=True):
            place = seed_of(self.seed, sample.domain, sample.row) % self.ends[-1]
            at = bisect.bisect_right(self.ends, place)
            name = self.domains[at]
            (block,) = self.corpus.rows([Sample(name, place - self.ends[at] + self.corpus.sizes[name])])
            found.append(CorpusRow(**vars(pair), corpus=block))
        return found


def collate(
    rows: Sequence[SampledRow], domains: list[str], step_pairs: int, share: float, device: torch.device
) -> SampledBatch:
    """As pairs.collate, with the blocks of the corpus after the answers."""
    blocks = [row.corpus for row in rows if isinstance(row, CorpusRow)]
    batch = pairs.collate(rows, domains, step_pairs, share, device, blocks)
    start_B = torch.tensor([row.start for row in rows], dtype=torch.float64)
    return SampledBatch(**vars(batch), start_B=start_B.to(device, torch.float32))


class PairStudent(pairs.PairTrainee):
    """The student with a loss of distill.losses.PAIRS, averaged over the pairs of the step, the corpus term and the router's terms."""

    ROWS = (
        "loss/pair", *(f"logp/{name}" for name in TEXTS), "pairs/margin", "pairs/accuracy", "pairs/reward_chosen",
        "pairs/reward_rejected", "pairs/tokens_of_teacher_text", "pairs/tokens_of_student_text", "pairs/clipped", "pairs/drift",
    )  # fmt: skip

    def __init__(self, model: nn.Module, weights: Weights, loss: str, options: Mapping[str, Any]):
        """Args: loss: of PAIRS. options: schema.PairOptions as a dict."""
        super().__init__(model, weights, "dpo", options)
        self.pair_loss = PAIRS[loss]

    def _loss(self, policy_R: Tensor, length_R: Tensor, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, SampledBatch)
        assert batch.reference_B2 is not None
        assert batch.start_B is not None
        count = len(batch.domains)
        logps = [*policy_R[: 2 * count].view(2, count), *batch.reference_B2.T]
        loss_B, found = self.pair_loss(Pairs(*logps, *length_R[: 2 * count].view(2, count)), self.options)
        total_B = loss_B
        if len(policy_R) > 2 * count:
            total_B = loss_B - self.options["corpus"] * (policy_R / length_R)[2 * count :]
        more_B, less_B = length_R[: 2 * count].float().view(2, count)
        values = {
            "loss/pair": loss_B.detach(),
            "pairs/clipped": found.get("clipped", torch.zeros_like(more_B)),
        }
        values |= {f"logp/{name}": found[name] for name in TEXTS}
        values |= {
            f"pairs/{name}": found[name]
            for name in ("margin", "accuracy", "reward_chosen", "reward_rejected")
        }
        values |= {"pairs/tokens_of_teacher_text": more_B, "pairs/tokens_of_student_text": less_B}
        values["pairs/drift"] = (logps[1].detach() - batch.start_B) / less_B
        return total_B.sum() / batch.step_targets, {ROW + name: values[name] for name in self.ROWS}


class Collapse:
    """Stops a training whose student's answers became implausible to it, and ends a round whose pairs are no longer the student's (train.job.Watch)."""

    def __init__(self, name: str, options: Mapping[str, Any], refresh: bool):
        """Args: name: of the step, for the message. options: schema.PairOptions as a dict. refresh: end the round where refresh_drop says so."""
        self.name, self.options, self.refresh = name, options, refresh
        self.alarm = dpkd_guarded.Alarm(options)

    def check(self, values: Mapping[str, float]) -> None:
        if self.options["alarm_drop"] is None:
            return
        said = self.alarm.check(values[DRIFT], values["train/logp/student_of_teacher_text"])
        if said is not None:
            raise InputError(
                f"{self.name}: {said} (distill.pairs, distill.rounds, distill.optimizer.lr); pairs.alarm_drop: null lets it go on"
            )

    def enough(self, steps: int, values: Mapping[str, float]) -> bool:
        drop = self.options["refresh_drop"]
        if not self.refresh or drop is None:
            return False
        # A round's own steps are its longest life; here only the drift counts.
        own = {"refresh_every": steps + 1, "refresh_drop": drop}
        return dpkd_guarded.refresh_due(steps, values[DRIFT], own)

    def state(self) -> dict[str, Any]:
        return {"alarm": self.alarm.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.alarm.load_state(state["alarm"])


def split(
    records: Sequence[Mapping[str, Any]], share: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Training and validation records by their question, so that no question is on both sides.

    Args:
        records: each with its `question`.

    Raises:
        InputError: fewer than two questions.
    """
    names = sorted({record["question"] for record in records})
    if len(names) < 2:
        raise InputError(
            f"distill.samples: answers to {len(names)} questions, at least 2 are needed; raise samples.prompts, or look at how many pairs of equal texts were left out"
        )
    _, held = pairs.split([{"id": name} for name in names], share, seed)
    chosen = {item["id"] for item in held}
    return [r for r in records if r["question"] not in chosen], [
        r for r in records if r["question"] in chosen
    ]
