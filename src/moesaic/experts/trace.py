"""What the dense parent does on the calibration text: one pass down, and one back up for gradients, holding one layer at a time.

The pass down keeps the input of every layer in one memory-mapped file, which serves the features of the splits, the backward pass and the fits
(what a layer's output should have been). The pass back runs each layer again with gradients and hands dL/d(input) down to the layer before.
Both go on where an interrupted process stopped.

Shapes: L layers, N blocks, B blocks of a batch, T tokens of a block, D model width, F dense FFN width, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.experts import calibration
from moesaic.experts.features import Activations, Ffn
from moesaic.experts.stream import Stream, mapped, progress
from moesaic.flow import files
from moesaic.flow.progress import Progress
from moesaic.model.lazy import LazyModel, attend

NAME, STATE = "trace.bin", "trace.json"


class Trace:
    """Inputs of every decoder layer of the dense parent, [L + 1, N, T, D] float32 in `work`; the last one is what the final norm gets."""

    def __init__(self, dense: LazyModel, text: calibration.Text, batch: int, work: Path):
        """Open or begin a trace. Raises InputError when the disk is full."""
        self.dense, self.text, self.work = dense, text, work
        self.batch, self.parts = batch, calibration.batches(text.fold_N, batch)
        self.positions = dense.positions(text.ids_NT.shape[1])
        self.shape = (dense.layers + 1, *text.ids_NT.shape, dense.config.hidden_size)
        found = progress(work / STATE, "layers", [work / NAME], self.shape)
        self.done = -1 if found is None else found
        self.inputs_LNTD = mapped(work / NAME, self.shape)

    @torch.no_grad()
    def run(self) -> None:
        """The pass down, from the first layer that is missing."""
        if self.done < 0:
            for part in self.parts:
                self.inputs_LNTD[0, part] = self.dense.embedding()[self.text.ids_NT[part]]
            self._keep(0)
        progress = Progress("run the dense parent", self.dense.layers, "layers", start=self.done)
        for index in range(self.done, self.dense.layers):
            block = self.dense.layer(index)
            for part in self.parts:
                after, x = attend(block, self.inputs_LNTD[index, part], self.positions)
                self.inputs_LNTD[index + 1, part] = after + block.mlp(x)
            self._keep(index + 1)
            progress.update()

    def _keep(self, layers: int) -> None:
        files.fsync(self.work / NAME)
        self.done = layers
        files.write_json(self.work / STATE, {"layers": layers})

    def fitted_parts(self) -> list[slice]:
        """Batches of the blocks that fits may use."""
        return [part for part in self.parts if self.text.fold_N[part.start] >= 0]

    @torch.no_grad()
    def activations(self, index: int, block: Any, ffn: Ffn) -> Iterator[Activations]:
        """What the dense layer does on the blocks that fits may use."""
        for part in self.fitted_parts():
            _, x = attend(block, self.inputs_LNTD[index, part], self.positions)
            x_TD = x.flatten(0, 1)
            yield self._activations(index, part, x_TD, calibration.finite(ffn.hidden(x_TD)))

    def gradients(self, tokens: int | None = None) -> "Gradients":
        """The pass back up, over the blocks that fits may use, or over `tokens` of them, evenly chosen."""
        return Gradients(self, tokens)

    def _activations(
        self, index: int, part: slice | Tensor, x_TD: Tensor, h_TF: Tensor, **more: Any
    ) -> Activations:
        weight_T = calibration.relative(self.inputs_LNTD[index + 1, part].flatten(0, 1))
        fold = int(self.text.fold_N[part][0])
        return Activations(x_TD, h_TF, fold, None, weight_T, **more)


class Gradients:
    """dL/d(output) of one layer after the other, from the last to the first; L is the sum of the next-token losses."""

    def __init__(self, trace: Trace, tokens: int | None):
        self.trace = trace
        fitted, length = trace.text.ids_NT[: trace.text.fitted].shape
        count = fitted if tokens is None else min(fitted, max(1, tokens // length))
        self.blocks_B = (torch.arange(count) * fitted) // count
        self.stream = Stream(trace.work, "gradient", (count, *trace.shape[2:]))
        self.stream.begin(self._loss())

    @property
    def everywhere(self) -> bool:
        """True when the pass goes over every block that fits may use."""
        return len(self.blocks_B) == self.trace.text.fitted

    @property
    def next(self) -> int:
        """The layer whose turn it is, -1 when all are done."""
        return self.trace.dense.layers - 1 - self.stream.layer

    def activations(self, block: Any, ffn: Ffn, cluster_N: Tensor | None) -> Iterator[Activations]:
        """The next layer's activations with dL/dh; when all batches were taken the layer before it is next.

        Raises:
            InputError: gradients that are not finite.
        """
        trace, index = self.trace, self.next
        for place in calibration.batches(trace.text.fold_N[self.blocks_B], trace.batch):
            part = self.blocks_B[place]
            with torch.enable_grad():
                hidden = trace.inputs_LNTD[index, part].requires_grad_()
                after, x = attend(block, hidden, trace.positions)
                h_BTF = functional.silu(x @ ffn.gate_FD.T) * (x @ ffn.up_FD.T)
                output = after + h_BTF @ ffn.down_DF.T
                at_hidden, at_h = torch.autograd.grad(output, (hidden, h_BTF), self.stream.now[place])
            if not torch.isfinite(at_hidden).all():
                raise InputError(
                    "construct: the gradients of the dense parent are not finite; its weights are damaged"
                )
            self.stream.after[place] = at_hidden
            h_TF = calibration.finite(h_BTF.detach().flatten(0, 1))
            cluster_T = (
                None if cluster_N is None else cluster_N[part].repeat_interleave(trace.text.ids_NT.shape[1])
            )
            yield trace._activations(
                index,
                part,
                x.detach().flatten(0, 1),
                h_TF,
                gradient_TF=at_h.flatten(0, 1),
                cluster_T=cluster_T,
            )
        self.stream.advance()

    def _loss(self) -> Iterator[tuple[slice, Tensor]]:
        """dL/d(last hidden state), a block at a time: the logits of one block are in memory."""
        norm, head_VD = self.trace.dense.head()
        for place, block in enumerate(self.blocks_B.tolist()):
            with torch.enable_grad():
                last = self.trace.inputs_LNTD[-1, block].clone().requires_grad_()
                logits = norm(last)[:-1] @ head_VD.T
                loss = functional.cross_entropy(logits, self.trace.text.ids_NT[block, 1:], reduction="sum")
                (found,) = torch.autograd.grad(loss, last)
            yield slice(place, place + 1), found[None]

    def remove(self) -> None:
        """Delete the files."""
        self.stream.remove()
