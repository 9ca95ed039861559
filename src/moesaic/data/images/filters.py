"""The filter chain for interleaved records, in the order of cost: text length, number of images, image coherence, then a judge's scores.

The order and the kinds follow what is said of LeafInstruct (arXiv 2407.03604: noisy web data filtered by text length and image count, text
quality scored by an LLM, then coherence of the images and agreement of text and image); its thresholds were not to be seen, so the numbers are
ours. Every drop is counted by reason.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from moesaic.data.images.judge import Unreadable
from moesaic.data.images.records import Interleaved, Judge, pictures, words

log = logging.getLogger("moesaic.images")


@dataclass(frozen=True)
class Limits:
    """What is kept; schema: data.images.filters."""

    min_characters: int = 10
    max_characters: int = 4000
    min_images: int = 1
    max_images: int = 4
    min_similarity: float = -1.0
    """Of two images of a record that follow on each other, see `similarity`; below it they have nothing to do with each other."""
    max_similarity: float = 0.995
    """Above it they are the same picture twice."""
    min_scores: dict[str, float] = field(default_factory=dict)
    """Aspect -> least score of the judge (0 to 5): text quality, image coherence, text-image agreement."""


def similarity(a: np.ndarray, b: np.ndarray, side: int = 8) -> float:
    """Correlation of two images' colours on a coarse grid, -1..1: a cheap stand-in for a perceptual distance (LPIPS), which needs a network."""
    one, two = (_coarse(image, side) for image in (a, b))
    one, two = one - one.mean(), two - two.mean()
    norm = float(np.linalg.norm(one) * np.linalg.norm(two))
    return (
        float((one * two).sum()) / norm if norm > 1e-9 else float(np.allclose(a.mean(), b.mean(), atol=0.02))
    )


def reason(record: Interleaved, limits: Limits, judge: Judge | None = None) -> str | None:
    """Why a record is dropped; None when it is kept. The judge is asked last, and only if a score is wanted."""
    length = len(words(record))
    if length < limits.min_characters:
        return "text_short"
    if length > limits.max_characters:
        return "text_long"
    images = pictures(record)
    if len(images) < limits.min_images:
        return "images_few"
    if len(images) > limits.max_images:
        return "images_many"
    for first, second in itertools.pairwise(images):
        found = similarity(first.pixels, second.pixels)
        if found > limits.max_similarity:
            return "images_equal"
        if found < limits.min_similarity:
            return "images_incoherent"
    for aspect, least in sorted(limits.min_scores.items()):
        assert judge is not None, "scores are wanted, but there is no judge"
        try:
            score = judge(aspect, record)
        except (
            Unreadable
        ) as error:  # a refusal; the temperature is 0, so that another try gets no other answer
            log.warning("%s; the record is dropped", error)
            return "judge_unreadable"
        if score < least:
            return f"judge_{aspect.replace(' ', '_')}"
    return None


def chain(
    records: Iterable[Interleaved], limits: Limits, counts: Counter[str], judge: Judge | None = None
) -> Iterator[Interleaved]:
    """The records that are kept; `counts` gets `kept` and each reason."""
    for record in records:
        why = reason(record, limits, judge)
        counts[why or "kept"] += 1
        if why is None:
            yield record


def _coarse(image: np.ndarray, side: int) -> np.ndarray:
    """Mean colour in side x side cells (fewer for smaller images)."""
    cells = [np.array_split(np.arange(size), min(side, size)) for size in image.shape[:2]]
    return np.array(
        [[image[np.ix_(rows, columns)].mean(axis=(0, 1)) for columns in cells[1]] for rows in cells[0]]
    )
