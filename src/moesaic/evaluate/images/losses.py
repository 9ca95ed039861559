"""How well a model predicts the answers of held-out conversations with pictures: image codes and text apart.

Shapes: B conversations, T tokens, N conversations in all, M targets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moesaic.data.sampler import Sample
from moesaic.evaluate.likelihood import target_nats
from moesaic.flow.progress import Progress
from moesaic.model.adapters.layout import ImageTokens
from moesaic.schema import IMAGES
from moesaic.train.objectives import IGNORE
from moesaic.train.streams import Stream, collate


@dataclass(frozen=True)
class Losses:
    """Sums by conversation; only answers count."""

    image_nats_N: np.ndarray
    image_right_N: np.ndarray
    """Codes that were the most likely token of all."""
    image_tokens_N: np.ndarray
    text_nats_N: np.ndarray
    text_tokens_N: np.ndarray
    """Text of answers; what begins and ends a picture is neither."""
    commonest: float
    """Share of the commonest code among the targets: the grid accuracy of always guessing it."""


@torch.inference_mode()
def measure(model: Any, tokens: ImageTokens, stream: Stream, count: int, batch: int, name: str) -> Losses:
    """Losses on the first `count` conversations with pictures, over the whole vocabulary. Args: batch: conversations per forward pass."""
    found: list[list[float]] = []
    codes: list[int] = []
    progress = Progress(name, count, "conversations")
    for start in range(0, count, batch):
        rows = stream.rows([Sample(IMAGES, row) for row in range(start, min(start + batch, count))])
        one = collate(rows, [IMAGES] * len(rows), 1, 1.0, model.device)
        hidden = one.hidden(model)
        where = one.targets_BT != IGNORE
        targets_M = one.targets_BT[where]
        nats_M, best_M = target_nats(model, hidden[where], targets_M)
        image_M, text_M = tokens.is_code(targets_M), tokens.is_text(targets_M)
        codes += (targets_M[image_M] - tokens.first).tolist()
        columns = torch.stack(
            [nats_M * image_M, best_M & image_M, image_M, nats_M * text_M, text_M], dim=1
        ).double()
        sums = torch.zeros(len(rows), 5, dtype=torch.float64, device=model.device)
        found += sums.index_add_(0, where.nonzero()[:, 0], columns).tolist()
        progress.update(len(rows))
    counts = np.bincount(codes, minlength=tokens.codes)
    nats, right, codes_N, text, words = np.array(found).T
    return Losses(nats, right, codes_N, text, words, float(counts.max() / max(1, counts.sum())))


def unigram_nats(tokens: ImageTokens, train: Stream, held: Stream, count: int) -> float | None:
    """Nats per code of a model that knows nothing but how often each code stands in the answers of the training conversations (add-one).

    Without a single code among the held-out targets: None.
    """

    def codes(stream: Stream, rows: int) -> np.ndarray:
        targets = np.concatenate(
            [row.targets for row in stream.rows([Sample(IMAGES, i) for i in range(rows)])]
        )
        inside = (targets >= tokens.first) & (targets < tokens.first + tokens.codes)
        return np.bincount(targets[inside] - tokens.first, minlength=tokens.codes)

    known = codes(train, train.sizes[IMAGES]) + 1.0
    asked = codes(held, count)
    return float(-(asked * np.log(known / known.sum())).sum() / asked.sum()) if asked.sum() else None
