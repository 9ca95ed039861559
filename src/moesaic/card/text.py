"""The card's text: what the model is, how it was made, what was measured, what it cannot do, how to load it."""

from collections.abc import Iterator
from typing import Any

from moesaic.card import metadata, story
from moesaic.card.parent import Parent
from moesaic.flow import files, manifest
from moesaic.model.adapters import beside
from moesaic.report import use
from moesaic.report.cells import percent, short
from moesaic.report.gather import Gathered, Point, Score

RIGHT = ("acc", "exact")
"""How names of metrics begin that are shares of right answers: of others, as calibration errors and drift, `chance` is not what guessing gets."""


def body(run: Gathered, point: Point, parent: Parent, name: str, shape: dict[str, Any]) -> str:
    """Markdown below the metadata. Equal manifests give equal text."""
    path = story.lineage(run, point)
    sections = [
        [f"# {name}", "", _opening(point, parent, shape)],
        ["## How it was made", "", *(f"- {line}" for line in story.stages(path))],
        ["## Data", "", *_data(run, path)],
        ["## Measured", "", *_measured(run, point)],
        ["## Limits", "", *(f"- {line}" for line in _limits(run, point, parent, path))],
        ["## Load it", "", *_load(point)],
        ["## Provenance", "", *_provenance(run, path)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _opening(point: Point, parent: Parent, shape: dict[str, Any]) -> str:
    base = f"[{parent.name}](https://huggingface.co/{parent.name})" if parent.name else "a dense model"
    metrics = point.model.metrics
    kind = "A Mixture of Experts" if metadata.experts(shape) else "A model"
    sizes = f"{short(metrics['parameters'])} parameters, {short(metrics['active_parameters'])} of them active for a token"
    share = f"{percent(point.active_ffn)} of the parent's FFN runs"
    return f"{kind} made from {base} by Moesaic, variant `{point.variant}` after the stage `{point.stage}`. Architecture `{metrics['architecture']}`; {sizes}; {share}."


def _data(run: Gathered, path: list[Point]) -> Iterator[str]:
    read = [story.reads(point) for point in path]
    uses = [name for name in ("calibration", "training") if any(name in found for found in read)]
    if uses:
        yield from ("| text | documents | from | use |", "|---|---|---|---|")
        for name, count, source, held_out in story.domains(run):
            yield f"| {name} | {count:,} | {source} | {'evaluation only' if held_out else ', '.join(uses)} |"
    if any("conversations" in found for found in read):
        yield from ("", "| conversations | kept | from |", "|---|---|---|")
        for name, count, source in story.conversations(run):
            yield f"| {name} | {count:,} | {source} |"
    if any("questions" in found for found in read):
        yield from ("", "Generated questions about time, with the model's own answers.")


def _measured(run: Gathered, point: Point) -> Iterator[str]:
    found = list(metadata.scores(point))
    if not found:
        yield "Nothing yet: this model was exported before it was evaluated."
        return
    yield "Value [95 % interval], by bootstrap over blocks of text or items; the dense parent on the same ones. Bits per byte and perplexity: lower is better."
    yield from ("", "| task | metric | this model | dense parent | chance | n |", "|---|---|---|---|---|---|")
    for item in found:
        parent = run.dense.score(item["task"], item["metric"])
        chance = "" if item.get("chance") is None else f"{item['chance']:.3f}"
        cells = [item["task"], item["metric"], _value(item), _value(parent), chance, f"{item['n']:,}"]
        yield f"| {' | '.join(cells)} |"


def _value(score: Score | None) -> str:
    if score is None:
        return ""
    value = f"{score['value']:.4g}"
    return value if score["ci_low"] is None else f"{value} [{score['ci_low']:.4g}, {score['ci_high']:.4g}]"


def _limits(run: Gathered, point: Point, parent: Parent, path: list[Point]) -> Iterator[str]:
    tokens = story.trained_tokens(path)
    bits, dense = (item.score("text/average", "bits_per_byte") for item in (point, run.dense))
    seen = (
        f"It was trained on {tokens:,} tokens since it was made from its parent"
        if tokens
        else "It was not trained since it was cut out of its parent"
    )
    compared = (
        f"; on the trained domains it needs {bits['value']:.3f} bits per byte, the parent {dense['value']:.3f}"
        if bits and dense
        else ""
    )
    yield f"{seen}{compared}."
    if run.held_out:
        yield f"`text/held-out` is text that neither calibration nor training saw: {', '.join(run.held_out)}."
    right = [
        item
        for item in metadata.scores(point)
        if item["metric"].startswith(RIGHT) and item.get("chance") is not None and item["ci_low"] is not None
    ]
    below = [item["task"] for item in right if item["ci_high"] < item["chance"]]
    guessed = [item["task"] for item in right if item["ci_low"] <= item["chance"] <= item["ci_high"]]
    for said, tasks in (("Not told apart from guessing", guessed), ("Worse than guessing", below)):
        if tasks:
            yield f"{said}: {', '.join(f'`{task}`' for task in dict.fromkeys(tasks))}."
    yield "It is one run with one seed; the intervals say how exactly this model was measured, not how another seed would come out."
    safe = "is in the table above" if point.reliability else "was not measured"
    yield f"Nothing was done about safety beyond what the parent has; how much of it is left {safe}."
    owed = (
        f"the parent's, `{parent.license}`" if parent.license else "the parent's, which its files do not name"
    )
    yield f"Licence: {owed}. The data keep their own."


def _load(point: Point) -> Iterator[str]:
    code, plain = use.load_code("PATH OR ID", point)
    if not plain:
        yield "Not all of it is a standard architecture: loading it needs Moesaic."
        yield ""
    yield from ("```python", code, "```")
    if beside.needed(point.model):
        yield from ("", f"The adapter lies in `{beside.FOLDER}/`, in peft's file format.")


def _provenance(run: Gathered, path: list[Point]) -> Iterator[str]:
    yield f"Run `{run.name}`. SHA-256 of the manifests, which list every file, setting and input:"
    yield from ("", "| step | manifest |", "|---|---|")
    for point in [run.dense, *path]:
        yield f"| {point.stage} | `{files.sha256(manifest.path_of(point.model.folder))}` |"
