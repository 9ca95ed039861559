"""Gate loads of each dataset's own rows through the model in training, for the mixtures that ask for them.

Which rows, in which batches, follows from the seed and the step alone: the probe is the same on any number of ranks and in a resumed run, and it
draws no random number of the training's. Nothing of it is kept between updates but what the mixture's state holds, so a run that is killed
in the middle of an update does the whole update again. Padding never counts.

Shapes: B rows of a batch, T tokens, K experts per token, E experts, D model width, L layers that are read.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moesaic.data.mixtures import Probe
from moesaic.data.mixtures.base import ProbeKind
from moesaic.data.mixtures.sentence_embedding import embed
from moesaic.data.sampler import Sample
from moesaic.errors import InputError
from moesaic.model import families
from moesaic.model.depth import skip
from moesaic.train.engine import Engine
from moesaic.train.job import Job
from moesaic.train.objectives import IGNORE
from moesaic.train.streams import Row, collate, count_targets

log = logging.getLogger("moesaic.train")

SALT = 0x9A7E
"""Keeps the probe's draws apart from the sampler's."""


def check(job: Job) -> None:
    """Before the first step: a probe after a hundred steps is late to find out. Raises InputError when `mixture.probe.layers` names a layer without experts."""
    mixture: Any = job.mixture
    if mixture.PROBES and mixture.wants() == "model":
        Reader(job.trainee.model, mixture.probe["layers"])


def update(job: Job, engine: Engine, step: int) -> dict[str, float]:
    """One update of the mixture after optimizer step `step`; returns what to log. All ranks must call it."""
    mixture: Any = job.mixture
    with engine.clock.phase("probe"):
        match mixture.wants():
            case "model":
                found: Probe | None = measure(job, engine, step)
            case "text":
                found = read(job, step)
            case _:
                found = None
        values: dict[str, float] = mixture.look(found)
        # Rank 0's figures count: another processor's arithmetic could differ in the last bit, and ranks must draw the same rows.
        mixture.load_state(engine.share(mixture.state()))
    return values


def measure(job: Job, engine: Engine, step: int) -> Probe:
    """Pass a sample of each dataset through the model in evaluation mode; the same on every rank.

    Raises:
        InputError: `mixture.probe.layers` names a layer that has no experts.
    """
    settings: dict[str, Any] = job.mixture.probe  # type: ignore[attr-defined]
    reader = Reader(job.trainee.model, settings["layers"])
    if reader.kind == "hidden":
        log.warning(
            "%s: mixture.method: %s finds no experts in this model (%s): it compares mean hidden states in place of gate loads",
            job.context.name,
            job.settings["mixture"]["method"],
            type(job.trainee.model).__name__,
        )
    micro = job.settings["micro_batch"]
    batches: list[tuple[str, list[Row], list[int]]] = []
    first: dict[str, slice] = {}
    count = 0
    for name in job.mixture.names:  # type: ignore[attr-defined]
        rows = draw(job, name, settings["rows"], step)
        first[name] = slice(count, count + len(rows))
        for begin in range(0, len(rows), micro):
            part = rows[begin : begin + micro]
            batches.append((name, part, list(range(count + begin, count + begin + len(part)))))
        count += len(rows)
    found = torch.zeros(count, len(reader.layers), reader.width, dtype=torch.float64)
    with engine.evaluating() as trainee, job.trainee.untaught(), reader:
        # every rank makes as many passes as the others: where weights are cut up, a pass needs all of them
        for begin in range(0, len(batches), engine.world):
            at = begin + engine.rank
            name, rows, places = batches[at] if at < len(batches) else batches[0]
            targets = [_one_target(row) for row in rows]
            batch = collate(targets, [name] * len(rows), max(1, count_targets(targets)), 0.0, engine.device)
            reader.begin(counted(rows, settings["tokens"]).to(engine.device))
            trainee(batch)
            if at < len(batches):
                found[places] = reader.result()
    total = engine.sum(found).cpu().numpy()  # each row comes from one rank, so the sum is exact
    return Probe(reader.kind, {name: total[where] for name, where in first.items()}, _seed(job) + step)


def read(job: Job, step: int) -> Probe:
    """Embeddings of a sample of each dataset's texts."""
    settings, names = job.mixture.probe, job.mixture.names  # type: ignore[attr-defined]
    rows = {name: [row.ids for row in draw(job, name, settings["rows"], step)] for name in names}
    return Probe("text", embed(rows, _seed(job) & 0xFFFFFFFF), _seed(job) + step)


def draw(job: Job, name: str, count: int, step: int) -> list[Row]:
    """Up to `count` training rows of a dataset without repeats, others at each step, the longest first (so that little is padded)."""
    size = job.train.sizes[name]
    random = np.random.default_rng([SALT, _seed(job), step, *name.encode()])
    chosen = random.permutation(size)[:count].tolist()
    rows = job.train.rows([Sample(name, row) for row in chosen])
    return sorted(rows, key=lambda row: -len(row.ids))


def counted(rows: Sequence[Row], tokens: str) -> Tensor:
    """Which positions count [B, T] bool, padded like `streams.collate` does. Args: tokens: all, or answer (those that a loss falls on)."""
    out = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.bool)
    for i, row in enumerate(rows):
        out[i, : len(row.ids)] = True
        if tokens == "answer":
            out[i, 0] = False
            out[i, 1 : len(row.ids)] = torch.from_numpy(row.targets[:-1] != IGNORE)
    return out


def _one_target(row: Row) -> Row:
    """The row with its first target alone, and no teacher: the model's head has nothing to do in a probe."""
    targets = np.full_like(row.targets, IGNORE)
    at = int((row.targets != IGNORE).argmax())
    targets[at] = row.targets[at]
    return row._replace(targets=targets, taught=None)


def _seed(job: Job) -> int:
    return int(job.context.settings["seed"])


class Reader:
    """Context manager: reads what the routers choose, or where there are none the decoder layers' outputs."""

    def __init__(self, model: nn.Module, layers: str | Sequence[int] | None):
        """Args: layers: last, all, or numbers of decoder layers.

        Raises:
            InputError: a layer without experts, or one that the model does not have.
        """
        parts = {part.layer: part for part in families.parts(model)}
        decoder: Any = model.base_model
        self.kind: ProbeKind = "gate" if parts else "hidden"
        there = list(parts) or list(range(len(decoder.layers)))
        if layers == "last" or layers is None:
            self.layers = there[-1:]
        elif layers == "all":
            self.layers = there
        else:
            self.layers = [int(layer) for layer in layers]
            wrong = sorted(set(self.layers) - set(there))
            if wrong or not self.layers:
                what = "with experts" if parts else "of the model"
                raise InputError(
                    f"mixture.probe.layers: {wrong[0] if wrong else 'empty'}: take layers {what}: {', '.join(map(str, there))}"
                )
        if parts:
            weight = parts[self.layers[0]].router.weight
            self.width = int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 holds a piece of it
            self.modules = [parts[layer].router for layer in self.layers]
        else:
            self.width = int(decoder.config.hidden_size)
            self.modules = [decoder.layers[layer] for layer in self.layers]
        skips = skip.layers(model)
        self.skips = [skips.get(layer) for layer in self.layers]
        self.counted_BT = torch.zeros(0, 0, dtype=torch.bool)
        self.found: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Reader":
        hook = self._choices if self.kind == "gate" else self._states
        self._handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(self.modules)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, counted_BT: Tensor) -> None:
        """Before a forward pass. Args: counted_BT: True for tokens that count."""
        self.counted_BT, self.found = counted_BT, {}

    def result(self) -> Tensor:
        """What the last forward pass showed [B, L, E] float64: hits, or mean states of length 1."""
        # a layer that every token skipped was not called
        nothing = torch.zeros(len(self.counted_BT), self.width, dtype=torch.float64)
        return torch.stack([self.found.get(i, nothing) for i in range(len(self.modules))], dim=1)

    def _choices(self, index: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            rows, length = self.counted_BT.shape
            counted_T = self.counted_BT.flatten()
            row_T = torch.arange(rows, device=counted_T.device).repeat_interleave(length)
            skipping = self.skips[index]
            if skipping is not None:
                if skipping.probing:  # for a label: no part of what the model computes
                    return
                counted_T, row_T = skipping.narrow(counted_T), skipping.narrow(row_T)
            slot_TK = output[2] + self.width * row_T[:, None]
            hits = torch.bincount(slot_TK[counted_T].flatten(), minlength=rows * self.width)
            self.found[index] = hits.view(rows, self.width).double().cpu()

        return hook

    def _states(self, index: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            state_BTD = (output[0] if isinstance(output, tuple) else output).double()
            total_BD = (state_BTD * self.counted_BT[:, :, None]).sum(dim=1)
            self.found[index] = nn.functional.normalize(total_BD, dim=1).cpu()

        return hook
