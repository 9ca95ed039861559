"""How well a model predicts the validation text of each domain, and what its routers do meanwhile, in one forward pass.

Shapes: B blocks, T tokens of a block, D model width, V vocabulary, N blocks of a domain.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moesaic.data.packed import PackedBlocks
from moesaic.errors import InputError
from moesaic.evaluate import bootstrap, routing
from moesaic.flow.progress import Progress
from moesaic.model import families
from moesaic.model.depth import skip

CHUNK = 256
"""Rows of logits made at once: 50 MB at a vocabulary of 49152."""


@dataclass(frozen=True)
class DomainLoss:
    """Next-token losses of one domain, block by block."""

    nats_N: np.ndarray
    bytes_N: np.ndarray
    tokens_N: np.ndarray
    """Predicted tokens of each block (T - 1)."""
    keys: list[str]
    """Digest of each block's tokens, so that two models are compared on the same text only."""
    usage: routing.Usage | None
    """Routing on the same tokens; None for a dense model."""
    ran_NL: np.ndarray | None = None
    """Share of each block's tokens for which the FFN of each skipping layer ran; None for a model that does not skip."""


def target_nats(
    model: Any, hidden_ND: Tensor, targets_N: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Loss of one target token per row, without the full logits [N, V].

    Returns:
        Nats [N] (float32 log-softmax) and whether the target is the most likely token [N].
    """
    head = model.get_output_embeddings()
    scale = float(getattr(model.config, "logits_scaling", 1.0))
    nats, best = [], []
    for start in range(0, len(hidden_ND), chunk):
        logits_NV = head(hidden_ND[start : start + chunk]).float()
        if scale != 1.0:
            logits_NV = logits_NV / scale
        wanted_N = targets_N[start : start + chunk]
        nats.append(functional.cross_entropy(logits_NV, wanted_N, reduction="none"))
        best.append(logits_NV.gather(1, wanted_N[:, None])[:, 0] >= logits_NV.amax(-1))
    return torch.cat(nats), torch.cat(best)


@torch.inference_mode()
def block_nats(model: Any, ids_BT: Tensor, chunk: int = CHUNK) -> Tensor:
    """Summed next-token nats of each block, [B] float64."""
    hidden_BTD = model.base_model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    nats, _ = target_nats(model, hidden_BTD.flatten(0, 1), ids_BT[:, 1:].flatten(), chunk)
    return nats.view(len(ids_BT), -1).double().sum(1)


def measure(
    model: Any, blocks: Mapping[str, PackedBlocks], limit: int | None, batch: int, name: str = "likelihood"
) -> dict[str, DomainLoss]:
    """Losses (and routing) of each domain on all blocks or the first `limit`, `batch` blocks per forward pass.

    Raises:
        InputError: a loss that is not a number; a block whose tokens stand for no bytes.
    """
    counts = {domain: min(len(item), limit or len(item)) for domain, item in blocks.items()}
    progress = Progress(name, sum(counts.values()), "blocks")
    found = {}
    for domain, item in blocks.items():
        if counts[domain] == 0:
            raise InputError(
                f"data.domains.{domain}: no validation block to evaluate on; raise data.max_validation_tokens or data.validation"
            )
        found[domain] = _domain(model, item, counts[domain], batch, progress, domain)
        if not found[domain].bytes_N.all():
            raise InputError(
                f"data.domains.{domain}: a validation block stands for no bytes of text; run the tokens step again"
            )
    return found


def _domain(
    model: Any, blocks: PackedBlocks, count: int, batch: int, progress: Progress, domain: str
) -> DomainLoss:
    nats, usage, keys, ran = [], [], [], []
    skips = skip.layers(model)
    with families.Routing(model) as recorded:
        for start in range(0, count, batch):
            rows = list(range(start, min(start + batch, count)))
            ids = np.asarray(blocks.tokens(rows), dtype=np.int64)
            keys += [hashlib.sha256(row.astype("<i4").tobytes()).hexdigest()[:16] for row in ids]
            nats.append(block_nats(model, torch.from_numpy(ids).to(model.device)).cpu().numpy())
            if recorded.layers:
                usage.append(routing.collect(recorded, len(rows)))
            if skips:
                ran.append(torch.stack([skipping.ran(len(rows)) for skipping in skips.values()], dim=1))
            progress.update(len(rows), domain)
    every = list(range(count))
    nats_N = np.concatenate(nats)
    if not np.isfinite(nats_N).all():
        block = int(np.flatnonzero(~np.isfinite(nats_N))[0])
        raise InputError(
            f"{model.config._name_or_path}: the loss on domain {domain}, validation block {block} is {nats_N[block]}; the weights are damaged or "
            "training diverged: look at its loss curve, lower the learning rate, and make the model again"
        )
    predicted = np.full(count, blocks.block - 1, dtype=np.int64)
    return DomainLoss(
        nats_N,
        np.asarray(blocks.bytes(every), dtype=np.int64),
        predicted,
        keys,
        routing.join(usage) if usage else None,
        torch.cat(ran).cpu().double().numpy() if ran else None,
    )


def bits_per_byte(
    losses: Mapping[str, DomainLoss], resamples: int, seed: int, name: str
) -> bootstrap.Estimate:
    """Mean over the domains of nats / bytes / ln 2, each domain counting the same; blocks are resampled within domains."""
    strata = [(item.nats_N / math.log(2), item.bytes_N) for item in losses.values()]
    return bootstrap.macro(strata, resamples, bootstrap.generator(seed, f"{name}/bits_per_byte"))


def perplexity(loss: DomainLoss, resamples: int, seed: int, name: str) -> bootstrap.Estimate:
    """Per token: exp(nats / tokens). Not comparable between tokenizers; bits per byte are."""
    found = bootstrap.ratio(
        loss.nats_N, loss.tokens_N, resamples, bootstrap.generator(seed, f"{name}/perplexity")
    )

    def exp(nats: float | None) -> float | None:
        return None if nats is None else math.exp(min(nats, 700.0))

    return bootstrap.Estimate(math.exp(min(found.value, 700.0)), exp(found.low), exp(found.high), found.n)
