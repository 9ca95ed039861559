"""Pictures: losses of image codes and of text, model by model, and what each model draws and says beside the originals."""

import base64
from html import escape

from moesaic.model.adapters import beside
from moesaic.report import plots
from moesaic.report.cells import NOTHING, interval, number, percent, short
from moesaic.report.gather import Gathered, Point
from moesaic.report.tables import Table

MOST = 4
"""Pictures of a model in the page."""


def table(run: Gathered) -> Table | None:
    """One row per model that was evaluated on conversations with pictures."""
    rows: list[list[str]] = []
    for point in _points(run):
        accuracy = point.score("images", "grid_accuracy")
        image, text = point.score("images", "image_nats"), point.score("images", "text_nats")
        adapter = point.model.metrics.get("adapter")
        judged = [
            f"{escape(metric.removeprefix('judge: '))} {score['value']:.2f}"
            for (task, metric), score in point.scores.items()
            if task == "images" and metric.startswith("judge: ")
        ]
        rows.append(
            [
                escape(point.label),
                f"{escape(adapter['method'])}<small>rank {adapter['rank']}</small>" if adapter else NOTHING,
                short(adapter["parameters"]) if adapter else NOTHING,
                interval(image, 3),
                interval(accuracy, 1, 100.0),
                interval(text, 3),
                "<br>".join(judged) or NOTHING,
            ]
        )
    if not rows:
        return None
    facts = _points(run)[-1].images
    guess = next((s for p in _points(run) if (s := p.score("images", "grid_accuracy"))), None)
    unigram = number(facts["unigram_nats"], 3)
    chance = percent(guess["chance"]) if guess and guess["chance"] is not None else NOTHING
    caption = (
        f"Held-out conversations with pictures ({facts['conversations']}): nats per token over the whole vocabulary, 95 % intervals over conversations. "
        f"Knowing only how frequent each of the {facts['codes']} codes is gives {unigram} nats; always guessing the commonest is right for {chance} of the codes."
    )
    head = [
        "model", "adapter", "learned", "image codes,<br>nats", "codes guessed<br>right, %", "text of answers,<br>nats", "judge, 0 to 5",
    ]  # fmt: skip
    return Table(caption, head, rows, text=(0, 1, 6))


def panels(run: Gathered) -> list[str]:
    """Training losses, image codes and text apart."""
    wanted = (
        ("train/modality/image", "Loss on image codes", "nats per code"),
        ("train/modality/text", "Loss on text of answers", "nats per token"),
    )
    return [panel for key, title, unit in wanted for panel in plots.curves(run, key, title, unit)]


def facts(run: Gathered) -> str:
    """What the codebook is and what it keeps."""
    found = next((step.manifest.metrics for step in run.steps if step.key == "prepare/images"), None)
    if found is None:
        return ""
    rows, columns = found["grid"]
    quality = (
        f", {found['psnr_db']:.1f} dB PSNR on what they were learned from"
        if found["psnr_db"] is not None
        else ""
    )
    return (
        f'<p class="quiet">{found["images"]:,} pictures in {found["conversations"]:,} conversations; a picture is {rows} &times; {columns} codes out of '
        f"{found['codes']}{quality}.</p>\n"
    )


def shown(run: Gathered) -> str:
    """Originals, what their codes keep, and what each model makes of the same words; then what each says of a picture."""
    out = []
    for point in _points(run):
        drawn, described = point.images["drawn"][:MOST], point.images["described"][:MOST]
        if not drawn and not described:
            continue
        out.append(f"<h3>{escape(point.label)}</h3>")
        cards = [
            _card(
                item["words"],
                [
                    (item[key], word)
                    for key, word in (
                        ("original", "original"),
                        ("codes", "its codes"),
                        ("drawn", "likeliest"),
                        ("sampled", "sampled"),
                    )
                ],
            )
            for item in drawn
        ]
        cards += [
            _card(f"“{item['caption']}”", [(item["original"], "original")], f"says: “{item['text']}”")
            for item in described
        ]
        out.append(f'<div class="samples pictures">{"".join(cards)}</div>')
    return "\n".join(out)


def kernels(run: Gathered) -> str:
    """The adapters' convolution kernels, arm by arm."""
    out = []
    for point in _points(run):
        path = point.model.folder / beside.FOLDER / beside.KERNELS
        if path.is_file():
            address = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            words = f"Kernels of {point.label}: red is positive, blue negative, white zero, each scaled to its own largest value; layer, projection and channel above each"
            out.append(
                f'<figure class="kernels"><img src="{address}" alt="{escape(words)}"><figcaption>{escape(words)}</figcaption></figure>'
            )
    return f"<h3>Learned kernels</h3>\n{''.join(out)}\n" if out else ""


def _card(title: str, pictures: list[tuple[str, str]], text: str = "") -> str:
    figures = "".join(
        f'<figure><img src="{escape(address)}" alt="{escape(f"{title}: {word}")}" width="64" height="64"><figcaption>{word}</figcaption></figure>'
        for address, word in pictures
    )
    words = f"<p>{escape(text)}</p>" if text else ""
    return f"<article><h4>{escape(title)}</h4><div>{figures}</div>{words}</article>"


def _points(run: Gathered) -> list[Point]:
    """The models that were evaluated on pictures."""
    return [point for point in run.points if point.images]
