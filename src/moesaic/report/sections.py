"""Sections of the page, one function each; an empty string where a run has nothing of the kind."""

from collections.abc import Sequence
from html import escape
from typing import Any

from moesaic.report import (
    answers,
    construction,
    depth,
    instructions,
    mixing,
    pictures,
    plots,
    preference,
    provenance,
    reliability,
    stage_table,
    tables,
    temporal,
    use,
)
from moesaic.report.gather import Gathered
from moesaic.report.html import figure, table


def every(run: Gathered, found: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(key, title, HTML) of the sections that have something to show. Args: found: the rows of the stage table."""
    sections = [
        ("stages", "Stage by stage", _stages(run, found)),
        ("domains", "By domain", _domains(run)),
        ("construction", "Construction", _construction(run)),
        ("training", "Training", _training(run)),
        ("mixture", "Data mixture", _mixture(run)),
        ("preference", "Preference tuning", _preference(run)),
        ("distillation", "Distillation on sampled answers", _distillation(run)),
        ("routing", "Routing", _routing(run)),
        ("depth", "Depth", _depth(run)),
        ("temporal", "Time", _temporal(run)),
        ("instructions", "Instructions", _instructions(run)),
        ("reliability", "Reliability", _reliability(run)),
        ("answers", "Answers that changed", _answers(run)),
        ("pictures", "Pictures", _pictures(run)),
        ("data", "Data", _data(run)),
        ("samples", "Samples", _samples(run)),
        ("settings", "Settings", provenance.settings(run)),
        ("provenance", "Provenance", provenance.steps(run)),
        ("use", "Use the result", use.html(run, found)),
    ]
    return [item for item in sections if item[2]]


def _stages(run: Gathered, found: Sequence[dict[str, Any]]) -> str:
    note = (
        '<p class="quiet">“&times; dense” is the ratio to the parent: below 1 is better for bits per byte, above 1 for accuracy and speed. '
        "Speed was measured once, during evaluation on the machine named under Provenance, experts run by "
        "<code>sorted-compiled</code> of Moesaic on a CPU (<code>sorted</code> without a C++ compiler), by <code>grouped_mm</code> of transformers on a GPU; whatever ran beside it is in the number. "
        "The marked row has the fewest bits per byte after the last stage.</p>\n"
    )
    scatter = figure(
        plots.tradeoff(run, found), "Quality against active parameters; bars are 95 % intervals.", 400
    )
    scores = f"<details><summary>All scores</summary>{table(stage_table.scores(run), 'sticky')}</details>\n"
    return table(stage_table.table(run, found), "sticky") + note + scatter + scores


def _domains(run: Gathered) -> str:
    caption = "Bits per byte by domain (lower is better); thin lines are 95 % intervals. Numbers: “All scores” above."
    return figure(plots.by_domain(run), caption, 400)


def _construction(run: Gathered) -> str:
    panels = construction.panels(run)
    if not panels:
        return ""
    words = (
        "The split layers before any training, on calibration text that no fit has seen; bands are 95 % intervals. Errors are against what "
        "the fit aims at: with a refit that includes making up for the layers before, without one it is the dense FFN's output."
    )
    why = construction.families(run)
    families = (
        f"<details><summary>Why these architectures</summary>{table(why, 'prose')}</details>\n" if why else ""
    )
    return figure(panels, words) + table(construction.placement(run)) + families


def _training(run: Gathered) -> str:
    if not any(point.curves for point in run.points):
        return ""
    loss = plots.curves(run, "train/loss/lm", "Next-token loss", "nats per token")
    teacher = plots.curves(run, "train/loss/distill", "Distillation loss", "nats per token")
    norm = plots.curves(run, "train/grad_norm", "Gradient norm", "before clipping")
    speed = plots.curves(run, "train/tokens_per_second", "Speed", "tokens per second")
    more = figure(norm, "Gradient norm.") + figure(speed, "Training speed.")
    return (
        figure(
            loss,
            "Cross entropy on the training batches: comparable between the variants of a stage, not between stages.",
        )
        + figure(teacher, "Distance to the teacher on the same tokens, beside the cross entropy above.")
        + table(tables.teacher_table(run))
        + figure(plots.domain_curves(run), "Training loss by domain, where a stage draws from several.")
        + f"<details><summary>Gradient norm and speed</summary>{more}</details>\n"
    )


def _mixture(run: Gathered) -> str:
    distances = (
        "Distance of the datasets at the last update: of their gate loads, or of hidden states or texts where the method compares those. "
        "What is far from all others is drawn more often."
    )
    loads = "Gate load at the last update, mean of the layers that are read, over an even share (1)."
    return (
        figure(mixing.weights(run), "Weight of each dataset: the share of the rows that is drawn from it.")
        + figure(mixing.distances(run), distances)
        + figure(mixing.loads(run), loads)
        + "".join(map(table, mixing.held_out(run)))
    )


def _preference(run: Gathered) -> str:
    counts = preference.counts(run)
    if counts is None:
        return ""
    words = "The pairs of each training step. Where the chosen answers become less likely too, only the margin grows."
    return table(counts, "sticky") + figure(preference.panels(run), words) + table(preference.learned(run))


def _distillation(run: Gathered) -> str:
    content = instructions.rounds(run)
    if content is None:
        return ""
    wanted = (
        ("train/pairs/margin", "Margin", "teacher's text over student's, reward"),
        ("train/pairs/accuracy", "Teacher's text is preferred", "share of the pairs"),
        (
            "train/logp/student_of_teacher_text",
            "Teacher's text",
            "log-probability per token of the student, nats",
        ),
        (
            "train/logp/student_of_student_text",
            "Student's text",
            "log-probability per token of the student, nats",
        ),
    )
    panels = [panel for key, title, unit in wanted for panel in plots.curves(run, key, title, unit)]
    words = "The pairs of each step of the last round. A student's text that falls without end is a collapse."
    return table(content, "sticky") + figure(panels, words)


def _instructions(run: Gathered) -> str:
    return table(instructions.scores(run), "sticky")


def _routing(run: Gathered) -> str:
    if not any(point.routing for point in run.points):
        return ""
    out = ["<h3>Expert load</h3>"]
    words = "Share of the token slots on validation text over an even share (1), mean over domains."
    out += [figure(plots.load_maps(run, variant), words, 165) for variant in run.variants]
    training = plots.curves(run, "routing/load_cv", "Load CV while training", "CV, mean of layers")
    out.append(figure(plots.load_cv(run), "Unevenness of the load on validation text, by layer."))
    out.append(figure(training, "Unevenness of the load on the training batches."))
    out.append("<h3>Specialisation</h3>")
    words = "After the last stage with experts: load of one domain over the mean of the domains, 1 where the expert serves this domain like the others."
    out += [figure(plots.deviation_maps(run, variant), words, 165) for variant in run.variants]
    return "".join(out)


def _depth(run: Gathered) -> str:
    content = depth.table(run)
    if content is None:
        return ""
    curves = plots.curves(run, "depth/ran", "FFNs that run", "share of the pairs, training")
    words = "Dashed: the budget of each layer; solid: what ran. At inference a threshold decides, so the two need not agree."
    return (
        table(content, "sticky")
        + figure(depth.panels(run), words, 420)
        + figure(curves, "Share of the (token, layer) pairs whose FFN ran, while the budget falls.")
        + figure(
            plots.curves(run, "depth/agreement", "Routers and labels", "share that agree"),
            "Share of the labels that the routers' threshold agrees with.",
        )
    )


def _temporal(run: Gathered) -> str:
    content = temporal.means(run)
    if content is None:
        return ""
    return f"{table(content, 'sticky')}<details><summary>All tasks</summary>{table(temporal.tasks(run), 'sticky')}</details>\n"


def _reliability(run: Gathered) -> str:
    content, missing = reliability.axes(run), reliability.missing(run)
    if content is None and missing is None:
        return ""
    if content is None:
        return table(missing)
    every = table(reliability.tasks(run), "sticky")
    return (
        table(content, "sticky")
        + table(missing)
        + figure(
            reliability.bars(run),
            "The axes after the last stage; lines are 95 % intervals, dots chance.",
            480,
        )
        + figure(
            reliability.calibration(run),
            "Accuracy against confidence, all multiple-choice tasks of the suite; larger dots hold more items.",
            240,
        )
        + table(reliability.shifts(run), "sticky")
        + table(reliability.stress(run))
        + table(reliability.attacks(run))
        + f"<details><summary>All tasks</summary>{every}</details>\n"
    )


def _answers(run: Gathered) -> str:
    content = answers.counts(run)
    if content is None:
        return ""
    shown = (
        f'<details><summary>{escape(title)}</summary><div class="samples">{"".join(articles)}</div></details>\n'
        for title, articles in answers.examples(run)
    )
    note = '<p class="quiet">What turned both ways is mostly chance: look at the difference, and read what was asked.</p>\n'
    return table(content) + note + "".join(shown)


def _pictures(run: Gathered) -> str:
    content = pictures.table(run)
    if content is None:
        return ""
    words = "The answers of the training conversations, image codes and text apart; what begins and ends a picture is neither."
    note = (
        '<p class="quiet">“its codes”: what the codebook keeps of the original; “likeliest” and “sampled”: drawn by the model from the same words. '
        "The conversations were never trained on.</p>\n"
    )
    curves = figure(pictures.panels(run), words)
    return (
        pictures.facts(run)
        + table(content, "sticky")
        + curves
        + pictures.kernels(run)
        + note
        + pictures.shown(run)
    )


def _data(run: Gathered) -> str:
    parts = (tables.documents_table(run), tables.tokens_table(run), tables.mixture_table(run))
    chat = next((step.manifest.metrics for step in run.steps if step.key == "prepare/chat"), None)
    words = ""
    if chat and "conversations" in chat:
        counts = ", ".join(f"{count:,} {escape(split)}" for split, count in chat["conversations"].items())
        words = f'<p class="quiet">Conversations kept: {counts}; answer tokens for training: {chat["answer_tokens"]["train"]:,}.</p>\n'
    return "".join(map(table, parts[:1])) + words + "".join(map(table, parts[1:]))


def _samples(run: Gathered) -> str:
    if not run.dense.samples:
        return ""
    out = ['<p class="quiet">Greedy continuations of the same prompts; one row per variant.</p>']
    for prompt in (sample["prompt"] for sample in run.dense.samples):
        out.append(f"<h3><code>{escape(prompt.strip())}</code></h3>")
        for variant in [None, *run.variants]:
            points = [point for point in run.points if point.variant == variant]
            cards = [
                _card(point.label, sample["text"])
                for point in points
                for sample in point.samples
                if sample["prompt"] == prompt
            ]
            out.append(f'<div class="samples">{"".join(cards)}</div>')
    return "\n".join(out)


def _card(label: str, text: str) -> str:
    return f"<article><h4>{escape(label)}</h4><p>{escape(text.strip())}</p></article>"
