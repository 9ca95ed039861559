"""What the chat step wrote, as the stages that train on it read it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moesaic.errors import InputError
from moesaic.flow.manifest import Manifest, path_of


class ChatSet:
    """The conversations of one source; held in memory as Arrow (five bytes a token)."""

    def __init__(self, table: pa.Table):
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def ids(self) -> list[str]:
        """Where each conversation comes from: `{file}:{row}`."""
        found: list[str] = self.table.column("id").to_pylist()
        return found

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [T] and loss mask int8 [T] of a conversation."""
        ids, mask = (self.table.column(name)[row].values.to_numpy() for name in ("input_ids", "loss_mask"))
        return ids, mask


def open_chat(chats: Manifest, split: str) -> dict[str, ChatSet]:
    """The conversations of a split by source.

    Raises:
        InputError: a missing or damaged file (named, with what to do).
    """
    path = chats.folder / f"{split}.parquet"
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        remedy = f"delete {path_of(chats.folder)} and run the chat step again"
        raise InputError(
            f"{path}: missing or damaged ({' '.join(str(error).split())[:120]}); {remedy}"
        ) from error
    return {name: ChatSet(table.filter(pc.equal(table["source"], name))) for name in chats.metrics["sources"]}
