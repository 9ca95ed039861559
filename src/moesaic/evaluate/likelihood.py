"""Bits per byte and perplexity on held-out text, and the routing of the same tokens in the same pass.

Shapes: B blocks, T tokens, D model width, V vocabulary, L layers, E experts.
"""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from moesaic.data.packed import PackedBlocks
from moesaic.errors import InputError
from moesaic.evaluate.routing import DomainRouting
from moesaic.flow.progress import Progress
from moesaic.model import families
from moesaic.train.chunked import chunked_loss


@dataclass
class Text:
    """Sums over each block of a domain; a block predicts its tokens 1 to T - 1."""

    nats: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    routing: DomainRouting | None = None


@torch.no_grad()
def measure(model: Any, blocks: PackedBlocks, limit: int | None, batch: int, name: str) -> Text:
    """Next-token nats of the first `limit` blocks (all: None).

    Raises:
        InputError: the loss is not finite.
    """
    text = Text()
    count = len(blocks) if limit is None else min(limit, len(blocks))
    moe = families.is_moe(model)
    progress = Progress(f"likelihood on {name}", count, "blocks")
    if moe:
        text.routing = DomainRouting(model.config.num_hidden_layers, model.config.num_local_experts)
    head_VD = model.get_output_embeddings().weight
    for start in range(0, count, batch):
        rows = list(range(start, min(start + batch, count)))
        ids_BT = torch.from_numpy(blocks.tokens(rows)).long()
        began = time.perf_counter()
        with families.Routing(model) if moe else contextlib.nullcontext() as routing:
            hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        targets = ids_BT[:, 1:].flatten()

        def loss(
            logits: torch.Tensor, where: slice, targets: torch.Tensor = targets
        ) -> tuple[torch.Tensor, torch.Tensor]:
            nll = functional.cross_entropy(logits, targets[where], reduction="none")
            return nll.sum(), nll[:, None]

        _, nll = chunked_loss(hidden_BTD[:, :-1].flatten(0, 1), head_VD, loss)
        text.seconds += time.perf_counter() - began
        per_block = nll.view(len(rows), -1).double().sum(dim=1)
        if not bool(per_block.isfinite().all()):
            raise InputError(
                f"evaluate: the loss on {name} is not finite; the model's weights are damaged or training diverged"
            )
        text.nats += per_block.tolist()
        text.bytes += [int(value) for value in blocks.bytes(rows)]
        text.tokens += [ids_BT.shape[1] - 1] * len(rows)
        if text.routing is not None:
            text.routing.add(routing)
        progress.update(len(rows))
    return text


def bits(text: Text) -> np.ndarray:
    """Bits of each block."""
    return np.asarray(text.nats) / np.log(2)
