"""An image tokeniser without training by gradient: k-means over the patches of the user's images.

A picture is resized to a grid of patches, each patch becomes the number of its nearest codebook entry, row by row; decoding puts the entries
back in place. The error is what vector quantisation leaves; `psnr` says how much. For photographs at scale a learned tokeniser is better:
any that gives a grid of ids fits in its place.

Shapes: N images, H rows and W columns of patches, p patch side in pixels, D = 3 p^2, C codes.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.errors import InputError
from moesaic.flow import files

NAME = "codebook.safetensors"


@dataclass(frozen=True)
class Codebook:
    """What `train` learned."""

    centres: np.ndarray
    """[C, D], red, green and blue of each pixel in 0..1."""
    patch: int
    """p"""

    @property
    def codes(self) -> int:
        """C"""
        return len(self.centres)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [H p, W p, 3] in 0..1 -> codes [H, W]."""
        found = patches(pixels, self.patch)
        flat = found.reshape(-1, found.shape[-1])
        # |x - c|^2 without |x|^2, which is the same for every code
        distance = (self.centres**2).sum(1) - 2 * flat @ self.centres.T
        return distance.argmin(1).reshape(found.shape[:2])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [H, W] -> pixels [H p, W p, 3]."""
        rows, columns = codes.shape
        found = self.centres[codes].reshape(rows, columns, self.patch, self.patch, 3)
        return found.transpose(0, 2, 1, 3, 4).reshape(rows * self.patch, columns * self.patch, 3)

    def save(self, folder: Path) -> None:
        """Write `codebook.safetensors`."""
        from safetensors.numpy import save_file

        with files.atomic_path(folder / NAME) as temporary:
            save_file(
                {"centres": self.centres.astype(np.float32)}, str(temporary), {"patch": str(self.patch)}
            )


def load(folder: Path) -> Codebook:
    """Read what `save` wrote. Raises InputError for a missing or damaged file."""
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    try:
        with safe_open(str(path), "np") as file:
            return Codebook(file.get_tensor("centres"), int(file.metadata()["patch"]))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: missing or damaged codebook ({error}); run the images step again"
        ) from error


def train(images: Iterable[np.ndarray], codes: int, patch: int, seed: int, most: int = 200_000) -> Codebook:
    """k-means over patches, in mini-batches, deterministic for a seed.

    Args:
        most: patches that are looked at; beyond them a random part is taken.

    Raises:
        InputError: fewer different patches than codes.
    """
    from sklearn.cluster import MiniBatchKMeans

    found = np.concatenate([patches(pixels, patch).reshape(-1, 3 * patch * patch) for pixels in images])
    random = np.random.default_rng(seed)
    if len(found) > most:
        found = found[np.sort(random.choice(len(found), most, replace=False))]
    different = len(np.unique(found.round(4), axis=0))
    if different < codes:
        raise InputError(
            f"data.images.codes: {codes} codes, but the images have only {different} different patches; take fewer codes, larger patches or more images"
        )
    means = MiniBatchKMeans(codes, random_state=seed, n_init=3, batch_size=2048, reassignment_ratio=0.01)
    centres = means.fit(found).cluster_centers_.clip(0.0, 1.0)
    # in order of brightness: a code's number says something to a reader, and equal runs give equal files
    return Codebook(centres[np.argsort(centres.sum(1), kind="stable")].astype(np.float32), patch)


def patches(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Pixels [H p, W p, 3] -> [H, W, D]. Raises InputError when the sides are no multiples of the patch."""
    height, width = pixels.shape[:2]
    if height % patch or width % patch:
        raise InputError(
            f"data.images: {height} x {width} pixels do not divide into patches of {patch}; change side or patch"
        )
    split = pixels.reshape(height // patch, patch, width // patch, patch, 3)
    return split.transpose(0, 2, 1, 3, 4).reshape(height // patch, width // patch, -1)


UNREADABLE_EXIF = (SyntaxError, ValueError, TypeError, KeyError, struct.error)
"""What Pillow raises on damaged EXIF data; the picture itself is whole."""


def read(source: Any, grid: tuple[int, int], patch: int) -> np.ndarray:
    """An image file as pixels [H p, W p, 3] in 0..1, turned upright as its EXIF data say and resized to the grid; what is transparent becomes white.

    Raises:
        InputError: not an image that Pillow can read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as opened:
            opened.load()  # what is wrong with the picture itself is told as that
            try:
                upright = ImageOps.exif_transpose(opened)
            except UNREADABLE_EXIF:
                upright = opened
            image = upright.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(
            f"{source}: not an image that can be read ({' '.join(str(error).split())})"
        ) from error
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    size = (grid[1] * patch, grid[0] * patch)
    return np.asarray(flat.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255


def psnr(pixels: np.ndarray, decoded: np.ndarray) -> float:
    """Peak signal-to-noise ratio, dB."""
    error = float(np.square(pixels - decoded).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))
