"""A batch whose teacher is offline, without files."""

import dataclasses

import torch
from torch.nn import functional

from moesaic.distill import truncation
from moesaic.distill.teachers import Cached
from moesaic.train.objectives import IGNORE


@torch.no_grad()
def cached(teacher, batch, top, tail, seed=0, temperature=1.0):
    """The batch with what the teacher's cache would bring."""
    where = batch.targets_BT != IGNORE
    logits = (
        teacher(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).logits[where].float()
    )
    kept = truncation.truncate(
        (logits / temperature).log_softmax(1), top, tail, torch.Generator().manual_seed(seed)
    )
    target = -functional.cross_entropy(logits, batch.targets_BT[where], reduction="none")
    return dataclasses.replace(batch, taught=Cached(*kept, target, tail, temperature))
