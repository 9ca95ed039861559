"""Step `documents`: repair, filter and deduplicate every domain's text, and split it into train and validation."""

import contextlib
import logging
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ftfy
import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.data import sources
from moesaic.data.duplicates import Duplicates
from moesaic.data.split import SPLITS, side_of
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.step import Context, Result
from moesaic.schema import Clean, Source

log = logging.getLogger("moesaic.documents")

REASONS = (
    "empty",
    "too_short",
    "too_long",
    "few_letters",
    "repeated_lines",
    "exact_duplicate",
    "near_duplicate",
)
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])
# A row group is closed at whichever comes first: it bounds the memory of this step and of everything that reads its files.
GROUP_DOCUMENTS, GROUP_CHARACTERS = 1024, 1 << 20

# Wrongly decoded text and control characters are repaired. What may be the author's own stays: entities (code and markup hold
# them on purpose), curly quotes, ligatures, full-width forms.
REPAIR = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    normalization="NFC",
)
# ASCII text without these is already what ftfy would make of it.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def run(context: Context) -> Result:
    """Write `{domain}.{train,validation}.parquet` (columns id, text) and `stats.json`. Metrics: documents in, kept, dropped."""
    settings = context.settings
    clean = Clean.model_validate(settings["clean"])
    # One memory for all domains: a text may not be in two of them, and so not on both sides of a split either.
    duplicates = Duplicates(clean.near_duplicates)
    stats: dict[str, Any] = {}
    for name, domain in settings["domains"].items():
        stats[name] = _domain(context, name, _documents(name, domain), clean, duplicates)
    files.write_json(context.out / "stats.json", stats)
    outputs = [f"{name}.{split}.parquet" for name in stats for split in SPLITS]
    metrics = {
        name: {
            "documents_in": item["documents_in"],
            "documents_kept": item["documents_kept"],
            "documents_dropped": item["documents_in"] - item["documents_kept"],
            **{split: item["kept"][split]["documents"] for split in SPLITS},
        }
        for name, item in stats.items()
    }
    return Result([*outputs, "stats.json"], {"domains": metrics})


def repair(text: str) -> str:
    """Mend mojibake and control characters, normalise to NFC and to \\n; idempotent."""
    if text.isascii() and not CONTROL.search(text):
        return text
    return unicodedata.normalize("NFC", ftfy.fix_text(text, REPAIR)).replace("\r\n", "\n").replace("\r", "\n")


def fault(text: str, clean: Clean) -> str | None:
    """The first filter that a text does not pass, or None."""
    if not text.strip():
        return "empty"
    if len(text) < clean.min_characters:
        return "too_short"
    if len(text) > clean.max_characters:
        return "too_long"
    if letters(text) < clean.min_letters:
        return "few_letters"
    if repeated_lines(text) > clean.max_repeated_lines:
        return "repeated_lines"
    return None


def letters(text: str) -> float:
    """Share of letters (of any script, with their combining marks) and white space among a text's characters."""
    counts = Counter(text)
    good = sum(n for c, n in counts.items() if c.isspace() or unicodedata.category(c)[0] in "LM")
    return good / len(text)


def repeated_lines(text: str) -> float:
    """Share of the non-empty lines that are copies of an earlier line; indentation does not count."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


# ---------------------------------------------------------------- one domain


def _documents(name: str, domain: Mapping[str, Any]) -> Iterator[sources.Document]:
    for i, raw in enumerate(domain["sources"]):
        yield from sources.documents(Source.model_validate(raw), f"data.domains.{name}.sources.{i}")


def _domain(
    context: Context, name: str, found: Iterator[sources.Document], clean: Clean, duplicates: Duplicates
) -> dict[str, Any]:
    """Stream one domain into its two files; returns its counts. Characters are those of the repaired text."""
    validation, seed = context.settings["validation"], context.settings["seed"]
    documents, characters = Counter[str](), Counter[str]()
    read = repaired = 0
    last = time.monotonic()
    with contextlib.ExitStack() as stack:
        write = {s: stack.enter_context(_writer(context.out / f"{name}.{s}.parquet")) for s in SPLITS}
        for document in found:
            text = repair(document.text)
            read += len(document.text)
            repaired += text != document.text
            outcome = fault(text, clean) or duplicates.check(text)
            if outcome is None:
                outcome = side_of(f"{seed}:{name}:{document.id}", validation)
                write[outcome](document.id, text)
            documents[outcome] += 1
            characters[outcome] += len(text)
            if time.monotonic() - last > 5.0:
                last = time.monotonic()
                log.info(
                    "%s %s: %d documents, %.1f M characters",
                    context.name,
                    name,
                    documents.total(),
                    read / 1e6,
                )
        _check(name, documents, validation)
    kept = {s: {"documents": documents[s], "characters": characters[s]} for s in SPLITS}
    stats = {
        "documents_in": documents.total(),
        "documents_kept": sum(item["documents"] for item in kept.values()),
        "documents_repaired": repaired,
        "characters_read": read,
        "characters_in": characters.total(),
        "characters_kept": sum(item["characters"] for item in kept.values()),
        "kept": kept,
        "dropped": {
            r: {"documents": documents[r], "characters": characters[r]} for r in REASONS if documents[r]
        },
    }
    log.info(
        "%s %s: kept %d of %d documents", context.name, name, stats["documents_kept"], stats["documents_in"]
    )
    return stats


def _check(name: str, documents: Counter[str], validation: float) -> None:
    """Both sides of the split need a document."""
    if all(documents[s] for s in SPLITS):
        return
    total, kept = documents.total(), sum(documents[s] for s in SPLITS)
    if not total:
        raise InputError(f"data.domains.{name}: empty, its sources hold no document")
    if not kept:
        dropped = ", ".join(f"{r} {documents[r]}" for r in REASONS if documents[r])
        raise InputError(
            f"data.domains.{name}: empty, none of its {total} documents passed data.clean ({dropped})"
        )
    side = next(s for s in SPLITS if not documents[s])
    raise InputError(
        f"data.domains.{name}: empty {side} split, {kept} documents are too few for data.validation {validation}; "
        "add documents, set max_characters to cut long ones, or change data.validation"
    )


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Callable[[str, str], None]]:
    """A function (id, text) that appends to a Parquet file; the file appears, whole, at the end."""
    ids: list[str] = []
    texts: list[str] = []
    held = 0
    with (
        files.atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):

        def flush() -> None:
            nonlocal held
            if ids:
                writer.write_table(pa.table([ids, texts], schema=SCHEMA))
            ids.clear()
            texts.clear()
            held = 0

        def write(document_id: str, text: str) -> None:
            nonlocal held
            ids.append(document_id)
            texts.append(text)
            held += len(text)
            if len(ids) >= GROUP_DOCUMENTS or held >= GROUP_CHARACTERS:
                flush()

        yield write
        flush()
