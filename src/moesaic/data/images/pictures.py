"""The pictures of the records, as they were cut to the grid, so that a decoded one can be shown beside its original; and PNG bytes.

Shapes: R records, N pictures, H and W pixels.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moesaic.errors import InputError
from moesaic.flow import files

NAME = "pictures.safetensors"


def save(folder: Path, by_record: Sequence[Sequence[np.ndarray]]) -> None:
    """Write `pictures.safetensors`: pixels uint8 [N, H, W, 3] in order, and the number of each record's first picture [R + 1]."""
    from safetensors.numpy import save_file

    listed = [to_bytes(pixels) for record in by_record for pixels in record]
    first = np.cumsum([0, *map(len, by_record)]).astype(np.int64)
    with files.atomic_path(folder / NAME) as temporary:
        save_file({"pixels": np.stack(listed), "first": first}, str(temporary))


def load(folder: Path, record: int) -> np.ndarray:
    """The pictures of one record, in order, uint8 [n, H, W, 3]. Raises InputError for a missing or damaged file."""
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    try:
        with safe_open(str(path), "np") as file:
            first = file.get_tensor("first")
            found: np.ndarray = file.get_slice("pixels")[int(first[record]) : int(first[record + 1])]
    except (OSError, SafetensorError, IndexError) as error:
        raise InputError(
            f"{path}: missing or damaged pictures ({error}); run the images step again"
        ) from error
    return found


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """0..1 -> uint8."""
    found: np.ndarray = (pixels.clip(0.0, 1.0) * 255).round().astype(np.uint8)
    return found


def png(rows: np.ndarray, zoom: int = 1) -> bytes:
    """Pictures [rows, columns, H, W, 3] (uint8, or 0..1) side by side as a PNG file."""
    from PIL import Image

    pixels = rows if rows.dtype == np.uint8 else to_bytes(rows)
    height, width = pixels.shape[0] * pixels.shape[2], pixels.shape[1] * pixels.shape[3]
    image = Image.fromarray(pixels.transpose(0, 2, 1, 3, 4).reshape(height, width, 3))
    buffer = io.BytesIO()
    image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(pixels: np.ndarray) -> str:
    """One picture [H, W, 3] as the address of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(pixels[None, None])).decode()
