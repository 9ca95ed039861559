"""Several conversations of a micro-batch in one sequence, each of them seeing itself alone, in place of padding to the longest.

What a step computes stays the same, up to the order of its sums: the same rows, targets, losses by row and router loads. Positions begin anew with each
row, which is what transformers tells rows apart by, so the model may be any of its classes. Packing: Krell et al., arXiv 2107.02027.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from moesaic.distill import cache
from moesaic.train.objectives import IGNORE, Batch
from moesaic.train.streams import Row
from moesaic.train.streams import collate as padded


def collate_of(packed: bool) -> Callable[..., Batch]:
    """How a stage on conversations makes batches of its rows."""
    return collate if packed else padded


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which rows share a sequence of `capacity` tokens: the longest first, each into the first sequence with room (first-fit decreasing)."""
    found: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = next((i for i, left in enumerate(room) if left >= lengths[row]), len(found))
        if at == len(found):
            found.append([])
            room.append(capacity)
        found[at].append(row)
        room[at] -= lengths[row]
    return found


def collate(
    rows: Sequence[Row], domains: list[str], step_targets: int, share: float, device: torch.device
) -> Batch:
    """As streams.collate, with no sequence longer than the longest row; where packing saves none, the same as that."""
    lengths = [len(row.ids) for row in rows]
    chosen = bins(lengths, max(lengths))
    if len(chosen) == len(rows) or any(row.positions is not None for row in rows):
        return padded(rows, domains, step_targets, share, device)
    shape = (len(chosen), max(lengths))
    ids_BT, owner_BT, mask_BT = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    targets_BT = np.full(shape, IGNORE, dtype=np.int64)
    # What is left of a sequence is one more row of its own, on which nothing falls.
    positions_BT = np.zeros(shape, dtype=np.int64)
    for b, members in enumerate(chosen):
        begin = 0
        for row in members:
            end = begin + lengths[row]
            ids_BT[b, begin:end], targets_BT[b, begin:end] = rows[row].ids, rows[row].targets
            owner_BT[b, begin:end], mask_BT[b, begin:end] = row, 1
            positions_BT[b, begin:end] = np.arange(lengths[row])
            begin = end
        positions_BT[b, begin:] = np.arange(shape[1] - begin)
    taught = [read() for members in chosen for row in members if (read := rows[row].taught) is not None]
    assert len(taught) in (0, len(rows)), "rows with and without a cached teacher in one batch"
    ids, targets, owner, mask, positions = (
        torch.from_numpy(item).to(device)
        for item in (ids_BT, targets_BT, owner_BT, mask_BT, positions_BT)
    )  # fmt: skip
    return Batch(
        ids, targets, None if mask_BT.all() else mask, domains, step_targets, share,
        positions_BT=positions, taught=cache.join(taught, device) if taught else None, rows_BT=owner,
    )  # fmt: skip
