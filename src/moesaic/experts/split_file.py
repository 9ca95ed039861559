"""The split as a file, `assignment.parquet`: one row per place of a neuron. The model that was made of it carries its digest.

The digest is in config.json as `moesaic_split`, which transformers keeps through training and saving, so that the split file of another
model is noticed even when the sizes are the same.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from moesaic.errors import InputError
from moesaic.experts.assignment import Assignment
from moesaic.flow import files

KEY = "moesaic_split"
"""Where the model's configuration holds the digest of its split."""
OVERLAP = "moesaic_overlap"
"""Where it says that several experts hold the same neurons."""

SCHEMA = pa.schema(
    [("layer", pa.int32()), ("neuron", pa.int32()), ("expert", pa.int32()), ("score", pa.float32())]
)


def table(assignments: list[Assignment | None]) -> pa.Table:
    """Layer, neuron, expert (-1 shared) and the method's score of the neuron, in the order of the MoE's matrices; no rows for dense layers."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for index, found in enumerate(assignments):
        if found is None:
            continue
        experts, neurons = found.routed_EM.shape
        where = torch.cat([found.shared_S, found.routed_EM.flatten()])
        columns["layer"] += [index] * where.numel()
        columns["neuron"] += where.tolist()
        columns["expert"] += [-1] * found.shared_S.numel()
        columns["expert"] += torch.arange(experts).repeat_interleave(neurons).tolist()
        columns["score"] += found.score_F[where].tolist()
    return pa.table(columns, schema=SCHEMA)


def digest(found: pa.Table) -> str:
    """SHA-256 of which neuron is where."""
    sha = hashlib.sha256()
    for name in ("layer", "neuron", "expert"):
        sha.update(np.ascontiguousarray(found[name].to_numpy(), dtype="<i4").tobytes())
    return sha.hexdigest()


def keys(found: pa.Table) -> dict[str, Any]:
    """What the configuration of a model says of its split."""
    places = found.group_by(["layer", "neuron"]).aggregate([]).num_rows
    return {KEY: digest(found)} | ({OVERLAP: True} if places < found.num_rows else {})


def write(path: Path, found: pa.Table) -> None:
    """Write a split."""
    with files.atomic_path(path) as temporary:
        pq.write_table(found, temporary, compression="zstd")


def read(path: Path, config: Any) -> pa.Table:
    """The split of a model.

    Args:
        config: the model's; a model without a digest (made elsewhere) takes any split.

    Raises:
        InputError: no such file, damaged, or the split of another model.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such assignment file")
    try:
        found = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); make the split again") from error
    missing = [name for name in SCHEMA.names if name not in found.column_names]
    if missing:
        raise InputError(f"{path}: no column {missing[0]}; this is not an assignment file")
    wanted, own = getattr(config, KEY, None), digest(found)
    if wanted is not None and wanted != own:
        raise InputError(
            f"{path}: the split of another model, or changed since (hash {own[:12]}, the model's is {wanted[:12]}); "
            "take the assignment.parquet that was written with the model"
        )
    return found
