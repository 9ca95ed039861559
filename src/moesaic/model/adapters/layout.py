"""Where the images are in a sequence of token ids, and which earlier cells a convolution's taps fall on.

An image is a begin token that names its grid, then its codes row by row, then the end token:

    <|image 2x3|> c c c  c c c <|image end|>

so the ids alone say what is text, what is image, and where in the picture a token lies; no side channel runs beside the text. A code that
stands in no image, or beyond the last cell of its grid, counts as text.

In raster order the tap (dy, dx) of the cell at sequence position t lies at t + dy W + dx, W the width of that image. So a causal kernel of k taps
on a side needs the last h (W + 1) positions, h = (k - 1) / 2, and a cached decoder keeps just these.

Shapes: B batch, T tokens of this pass, N image tokens of this pass, K taps, L kept positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moesaic.errors import InputError


@dataclass(frozen=True)
class ImageTokens:
    """Which ids are image tokens."""

    first: int
    """Id of code 0; the codes follow on."""
    codes: int
    """Size of the codebook."""
    end: int
    """Id of the end token."""
    grids: Mapping[int, tuple[int, int]]
    """Id of a begin token -> (rows, columns)."""

    def is_code(self, ids: Tensor) -> Tensor:
        """True where an id is a code."""
        return (ids >= self.first) & (ids < self.first + self.codes)

    def is_marker(self, ids: Tensor) -> Tensor:
        """True where an id begins or ends an image."""
        return torch.isin(ids, torch.tensor([self.end, *self.grids], device=ids.device))

    def is_text(self, ids: Tensor) -> Tensor:
        """True where an id is neither a code nor begins or ends an image."""
        return ~self.is_code(ids) & ~self.is_marker(ids)

    @property
    def widest(self) -> int:
        """Columns of the widest grid."""
        return max(columns for _, columns in self.grids.values())

    def as_json(self) -> dict[str, Any]:
        """For a file; `from_json` reads it back."""
        grids = {str(begin): list(grid) for begin, grid in self.grids.items()}
        return {"first": self.first, "codes": self.codes, "end": self.end, "grids": grids}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "ImageTokens":
        """What `as_json` made."""
        grids = {int(begin): (int(grid[0]), int(grid[1])) for begin, grid in raw["grids"].items()}
        return ImageTokens(int(raw["first"]), int(raw["codes"]), int(raw["end"]), grids)


class Open(NamedTuple):
    """For each row, the image that the last token left open."""

    rows_B: Tensor
    columns_B: Tensor
    """0 when none is open."""
    cells_B: Tensor
    """Cells seen so far."""


class Layout(NamedTuple):
    """The images of one forward pass."""

    is_image_BT: Tensor
    place_N: Tensor
    """Position of each image token in the flattened batch."""
    tap_NK: Tensor
    """Where each tap falls, as an index into the flattened [B, L + T]; 0 where it falls outside the image."""
    inside_NK: Tensor
    """False where a tap falls outside the image."""
    images: bool
    """There is an image token at all."""
    open: Open
    complete: bool
    """Every image of this pass began in it and has all its cells in it."""


def taps(size: int, causal: bool) -> list[tuple[int, int]]:
    """(dy, dx) of a kernel's taps in raster order; a causal kernel has those up to the cell itself: (k^2 + 1) / 2.

    Raises:
        InputError: an even size.
    """
    if size < 1 or size % 2 == 0:
        raise InputError(f"size: {size} taps on a side; give an odd number")
    half = size // 2
    around = range(-half, half + 1)
    return [(dy, dx) for dy in around for dx in around if not causal or (dy, dx) <= (0, 0)]


def find(
    ids_BT: Tensor, tokens: ImageTokens, offsets: Sequence[tuple[int, int]], kept: int, before: Open | None
) -> Layout:
    """The images of a pass.

    Args:
        offsets: (dy, dx) of the taps.
        kept: L, positions before this pass whose values are at hand.
        before: the images that the pass before left open; None at the beginning of a sequence.
    """
    rows, length = ids_BT.shape
    device = ids_BT.device
    if before is None:
        none = torch.zeros(rows, dtype=torch.long, device=device)
        before = Open(none, none, none)
    heights_BT, widths_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for begin, (height, width) in tokens.grids.items():
        where = ids_BT == begin
        heights_BT, widths_BT = heights_BT.masked_fill(where, height), widths_BT.masked_fill(where, width)
    step_T = torch.arange(length, device=device)
    # the last token that is no code, at or before each position; -1: it is in an earlier pass
    anchor_BT = torch.where(tokens.is_code(ids_BT), -1, step_T).cummax(dim=1).values
    earlier_BT = anchor_BT < 0
    at_BT = anchor_BT.clamp_min(0)
    height_BT = torch.where(earlier_BT, before.rows_B[:, None], heights_BT.gather(1, at_BT))
    width_BT = torch.where(earlier_BT, before.columns_B[:, None], widths_BT.gather(1, at_BT))
    cell_BT = torch.where(earlier_BT, before.cells_B[:, None] + step_T, step_T - anchor_BT - 1)
    is_image_BT = tokens.is_code(ids_BT) & (cell_BT < height_BT * width_BT)

    place_N = is_image_BT.flatten().nonzero()[:, 0]
    cell_N, width_N, height_N = (value.flatten()[place_N] for value in (cell_BT, width_BT, height_BT))
    y_N, x_N = cell_N // width_N.clamp_min(1), cell_N % width_N.clamp_min(1)
    taps_2K = torch.tensor(offsets, device=device).T
    y_NK, x_NK = y_N[:, None] + taps_2K[0], x_N[:, None] + taps_2K[1]
    inside_NK = (y_NK >= 0) & (y_NK < height_N[:, None]) & (x_NK >= 0) & (x_NK < width_N[:, None])
    row_N, step_N = place_N // length, place_N % length
    there_NK = step_N[:, None] + taps_2K[0] * width_N[:, None] + taps_2K[1]
    inside_NK = inside_NK & (there_NK < length)  # a centred kernel at a cut image
    tap_NK = torch.where(inside_NK, row_N[:, None] * (kept + length) + kept + there_NK, 0)

    last = (slice(None), -1)
    left = Open(height_BT[last], width_BT[last], cell_BT[last] + 1)
    whole_BT = cell_BT + 1 == height_BT * width_BT
    ends_BT = is_image_BT & torch.cat([~is_image_BT[:, 1:], torch.ones_like(is_image_BT[:, :1])], dim=1)
    cut = ends_BT & ~whole_BT
    complete = not bool(cut.any()) and not bool((is_image_BT & earlier_BT).any())
    return Layout(is_image_BT, place_N, tap_NK, inside_NK, bool(len(place_N)), left, complete)
