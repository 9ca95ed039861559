"""Stream documents and records out of a source: the field, the limits and the cutting of long texts."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from moesaic.data.fetch import resolve
from moesaic.data.formats import Record, rows
from moesaic.errors import GatedError, InputError
from moesaic.schema import HubDataset, Location, Maths, Source

CUTS = ("\n\n", "\n", ". ", " ")


class Document(NamedTuple):
    """One text; the id is `{file}:{row}`, and `:{piece}` for a piece of a long text."""

    id: str
    text: str


def documents(source: Source, key: str = "source") -> Iterator[Document]:
    """Yield a source's documents in the order of its files; memory is bounded by the longest record (or text file).

    Args:
        source: where, which field, and how many documents at most; pieces of long texts count as documents.
        key: the source's configuration key, for error messages, e.g. data.domains.web.sources.0.

    Raises:
        InputError: a damaged file (named, with the line), or a record without the field.
    """
    count = 0
    for record in located(source.at, key):
        field = "text" if record.plain else source.field
        if field not in record.fields:
            raise InputError(
                f"{key}.field: no field '{field}' in {record.id}; its fields are {', '.join(map(str, record.fields))}"
            )
        text = record.fields[field]
        if text is not None and not isinstance(text, str):
            raise InputError(f"{key}.field: '{field}' of {record.id} is {type(text).__name__}, not text")
        text = (text or "").replace("\r\n", "\n").replace("\r", "\n")
        long = source.max_characters is not None and len(text) > source.max_characters
        for i, piece in enumerate(
            cut(text, source.max_characters) if long and source.max_characters else [text]
        ):
            if source.max_documents is not None and count >= source.max_documents:
                return
            count += 1
            yield Document(f"{record.id}:{i}" if long else record.id, piece)


def records(location: Location) -> Iterator[dict[str, Any]]:
    """The rows of a location as dicts; a plain text file is one row with the field `text`."""
    return (record.fields for record in located(location))


def located(location: Location, key: str = "source") -> Iterator[Record]:
    """The rows of a location, each with its id."""
    if isinstance(location, HubDataset):
        yield from _hub(location, key)
        return
    if isinstance(location, Maths):
        from moesaic.evaluate.temporal import maths

        made = maths.records(location.conversations, location.time, location.seed)
        yield from (Record(f"maths:{i}", dict(record)) for i, record in enumerate(made))
        return
    for file in resolve(location):
        yield from rows(file)


def cut(text: str, size: int) -> Iterator[str]:
    """Consecutive pieces of at most `size` characters that concatenate to the text.

    Each ends at the last paragraph end of the window's second half; without one at a line end, a sentence end or a space, and
    in the middle of a word only when there is none of these.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        for mark in CUTS:
            found = text.rfind(mark, start + size // 2, end)
            if found > start:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end
    yield text[start:]


def _hub(location: HubDataset, key: str) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.load_dataset(
            location.dataset,
            location.subset,
            split=location.split,
            revision=location.revision,
            streaming=True,
        )
        for i, row in enumerate(rows):
            yield Record(f"{location.dataset}:{i}", dict(row))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        if _gated(error):
            raise GatedError(
                f"{key}.at: {location.dataset} on the hub is gated; accept its conditions at https://huggingface.co/datasets/{location.dataset} and set HF_TOKEN ({reason})"
            ) from error
        raise InputError(
            f"{key}.at: cannot read {location.dataset} from the hub ({reason}); check dataset, subset, split, the network and HF_TOKEN; of a dataset that is a script, revision: refs/convert/parquet has the rows"
        ) from error


def _gated(error: BaseException | None) -> bool:
    from huggingface_hub.errors import GatedRepoError

    return error is not None and (isinstance(error, GatedRepoError) or _gated(error.__cause__))
