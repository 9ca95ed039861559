"""Step `images`: read pictures and captions, filter them, learn the codebook, write the records as conversations of image tokens.

Everything is held in memory (3 bytes a pixel and 12 while it is filtered). The codebook is learned from all pictures that are kept, those of
validation conversations too: it knows no caption.
"""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.data import fetch
from moesaic.data.conversations import fill
from moesaic.data.formats import rows
from moesaic.data.images import codebook, filters, judge, pictures, records
from moesaic.data.images.records import Interleaved, Judge
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.step import Context, Result
from moesaic.schema import Images, ImageSource

log = logging.getLogger("moesaic.images")

TABLES = (".jsonl", ".json", ".csv", ".parquet")
STRIP = 12
"""Pictures in decoded.png."""


def run(context: Context) -> Result:
    """Write the codebook, conversations.jsonl, pictures.safetensors, stats.json and decoded.png. Metrics: counts, mean PSNR of the decoded pictures (dB).

    Raises:
        InputError: no record is left, a picture that cannot be read, a judge that does not answer.
    """
    settings = Images.model_validate(context.settings["images"])
    counts: Counter[str] = Counter()
    limits = filters.Limits(
        **settings.filters.model_dump(exclude={"judge", "min_scores"}),
        min_scores={str(aspect): least for aspect, least in settings.filters.min_scores.items()},
    )
    found = _records(settings, context.settings["seed"], counts)
    kept = list(filters.chain(found, limits, counts, _judge(settings)))
    shown = [records.pictures(record) for record in kept]
    pixels = [picture.pixels for listed in shown for picture in listed]
    if not pixels:
        raise InputError(
            f"data.images: no picture is left ({dict(counts) or 'no record at all'}); see the form of records in docs/methods/lateral-lora.md and data.images.filters"
        )
    book = codebook.train(pixels, settings.codes, settings.patch, context.settings["seed"])
    book.save(context.out)
    files.write_lines(
        context.out / records.NAME, ({"messages": records.encode(record, book)} for record in kept)
    )
    pictures.save(context.out, [[picture.pixels for picture in listed] for listed in shown])
    decoded = [book.decode(book.encode(image)) for image in pixels]
    quality = [codebook.psnr(a, b) for a, b in zip(pixels, decoded, strict=True)]
    finite = [value for value in quality if np.isfinite(value)]
    files.write_json(
        context.out / "stats.json", {"records": dict(sorted(counts.items())), "images": len(pixels)}
    )
    with files.atomic_path(context.out / "decoded.png") as temporary:
        temporary.write_bytes(pictures.png(np.stack([pixels[:STRIP], decoded[:STRIP]])))
    log.info("%s: kept %d of %d records, %d pictures", context.name, len(kept), counts.total(), len(pixels))
    metrics = {
        "conversations": len(kept),
        "images": len(pixels),
        "codes": settings.codes,
        "grid": list(settings.grid),
        "psnr_db": round(float(np.mean(finite)), 3) if finite else None,
    }
    outputs = [codebook.NAME, records.NAME, pictures.NAME, "stats.json", "decoded.png"]
    return Result(outputs, metrics)


def _records(settings: Images, seed: int, counts: Counter[str]) -> Iterator[Interleaved]:
    """The records of all sources; malformed ones are counted."""
    shown: set[Path] = set()
    """Pictures of the records so far."""
    again: set[Path] = set()
    for i, source in enumerate(settings.sources):
        key = f"data.images.sources.{i}"
        if source.format == "captions":
            read = _captions(source, key, settings, random.Random(f"{seed}/{i}"), counts, shown)
        else:
            read = _messages(source, key)
        for raw, find in read:
            record = records.parse(raw, find, settings.grid, settings.patch)
            if record is None:
                counts["malformed"] += 1
            else:
                inside = {picture.path for picture in records.pictures(record)}
                again |= inside & shown
                shown |= inside
                yield record
    if counts["repeated_picture"]:
        log.warning(
            "data.images: %d captions are left out, their pictures stand in a record already: one caption is taken of each picture",
            counts["repeated_picture"],
        )
    if again:
        log.warning(
            "data.images: %d pictures stand in several records and may be on both sides of the split: give each record of format messages its own",
            len(again),
        )


Found = Iterator[tuple[dict[str, Any], Callable[[str], Path]]]


def _captions(
    source: ImageSource,
    key: str,
    settings: Images,
    chance: random.Random,
    counts: Counter[str],
    shown: set[Path],
) -> Found:
    """Captioned pictures in random order, several to a record; of a picture with several captions (as in COCO) the first.

    Args:
        shown: pictures of other sources' records, which are left out here.
    """
    pairs: list[tuple[str, str]] = []
    places: dict[str, Path] = {}
    mine, repeated = set(shown), 0
    fields: list[str] = []
    for fields_of, find in _rows(source, key):
        fields = fields or list(fields_of)
        path, caption = fill(source.image, fields_of), fill(source.caption, fields_of)
        if path is None or caption is None or not caption.strip():
            counts["malformed"] += 1
            continue
        file = find(path)
        if file in mine:
            repeated += 1
            continue
        mine.add(file)
        places[path] = file
        pairs.append((path, caption.lower() if caption.isupper() else caption))
    if repeated:
        counts["repeated_picture"] += repeated
    if not pairs and not repeated:
        raise InputError(
            f"{key}: no record has what {source.image} and {source.caption} ask for; its fields are {', '.join(fields) or 'none'}"
        )
    chance.shuffle(pairs)
    for raw in records.captioned(
        pairs[: source.max_records], settings.turns, settings.draw, settings.describe
    ):
        yield raw, places.__getitem__


def _messages(source: ImageSource, key: str) -> Found:
    """Interleaved records as they stand."""
    for number, (raw, find) in enumerate(_rows(source, key)):
        if source.max_records is not None and number >= source.max_records:
            return
        yield raw, find


def _rows(source: ImageSource, key: str) -> Found:
    """The fields of every record, and where its pictures are. A folder may hold the pictures beside the tables."""
    inside = (
        {file.name: file.path for file in fetch.resolve(source.images)} if source.images is not None else None
    )
    tables = [
        file for file in fetch.resolve(source.at) if any(end in TABLES for end in file.path.suffixes[-2:])
    ]
    if not tables:
        raise InputError(f"{key}.at: no table of records there; give {', '.join(TABLES)}")
    for file in tables:
        find = file.path.parent.joinpath if inside is None else _within(inside, key)
        for row in rows(file):
            yield row.fields, find


def _within(inside: dict[str, Path], key: str) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if name not in inside:
            raise InputError(
                f"{key}.image: no file {name} among the {len(inside)} of {key}.images, such as {next(iter(inside))}"
            )
        return inside[name]

    return find


def _judge(settings: Images) -> Judge | None:
    found = settings.filters.judge
    if found is None or not settings.filters.min_scores:
        return None
    return judge.endpoint(found.url, found.model, os.environ.get(found.key_variable, ""))
