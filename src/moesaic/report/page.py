"""One self-contained HTML page: no script, no request, light and dark, phone and paper."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from moesaic.report import (
    answers,
    cells,
    construction,
    depth,
    instructions,
    mixing,
    pictures,
    plots,
    preference,
    reliability,
    tables,
    temporal,
    use,
)
from moesaic.report.gather import Gathered
from moesaic.report.tables import Table

CSS = Path(__file__).with_name("page.css")
PREPARE = "prepare/"


def render(run: Gathered, found: Sequence[dict[str, Any]], verdict: str) -> str:
    """The page. `found` are the rows of the stage table."""
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
        ("settings", "Settings", _settings(run)),
        ("provenance", "Provenance", _provenance(run)),
        ("use", "Use the result", use.html(run, found)),
    ]
    sections = [item for item in sections if item[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{title}</h2>{html}</section>\n'
        for key, title, html in sections
    )
    name = escape(run.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{name}: dense to Mixture of Experts</title>\n<style>\n{CSS.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f'<header><h1>{name}: dense to Mixture of Experts</h1>\n<p class="verdict">{_units(escape(verdict))}</p>\n'
        f'{_parent(run)}<nav aria-label="Contents">{links}</nav></header>\n<main>\n{body}</main>\n'
        '<footer class="quiet">Made by Moesaic from the manifests, scores and metrics in <code>results/</code>; '
        "the same numbers for programs: <code>results/summary.json</code>.</footer>\n</body>\n</html>\n"
    )


def table(content: Table | None, css: str = "") -> str:
    """A table with its caption; the first column heads the rows."""
    if content is None:
        return ""
    head = "".join(f'<th scope="col"{_text(i, content)}>{cell}</th>' for i, cell in enumerate(content.head))
    lines = []
    for number, line in enumerate(content.rows):
        classes = [
            name for name, where in (("strong", content.strong), ("group", content.groups)) if number in where
        ]
        first = f'<th scope="row"{_text(0, content)}>{line[0]}</th>'
        rest = "".join(f"<td{_text(i, content)}>{cell}</td>" for i, cell in enumerate(line) if i)
        lines.append(
            f'<tr class="{" ".join(classes)}">{first}{rest}</tr>' if classes else f"<tr>{first}{rest}</tr>"
        )
    caption = f"<caption><span>{content.caption}</span></caption>" if content.caption else ""
    body = "\n".join(lines)
    name = f' class="{css}"' if css else ""
    return f'<div class="scroll" tabindex="0"><table{name}>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'


def figure(panels: Sequence[str], caption: str, width: int = 360, css: str = "") -> str:
    """Panels that wrap, under one caption."""
    if not panels:
        return ""
    inner = "\n".join(f"<div>{panel}</div>" for panel in panels)
    return f'<figure class="{css}"><div class="panels" style="--panel: {width}px">{inner}</div><figcaption>{caption}</figcaption></figure>\n'


def _units(text: str) -> str:
    """Numbers stay on one line with their units."""
    return re.sub(r"(\d) (%|[TBMk]\b)", "\\1&nbsp;\\2", text)


def _text(index: int, content: Table) -> str:
    return ' class="text"' if index in content.text else ""


# ---------------------------------------------------------------- sections


def _parent(run: Gathered) -> str:
    facts = run.dense.model.metrics
    words = (
        f"Dense parent: {escape(facts['architecture'])}, {cells.short(facts['parameters'])} parameters, {facts['layers']} layers, "
        f"width {facts['hidden']}, FFN {facts['ffn']}. Stages: {escape(' → '.join(run.stages))}. Variants: {escape(', '.join(run.variants))}."
    )
    return f'<p class="quiet">{words}</p>\n'


def _stages(run: Gathered, found: Sequence[dict[str, Any]]) -> str:
    note = (
        '<p class="quiet">“&times; dense” is the ratio to the parent: below 1 is better for bits per byte, above 1 for accuracy and speed. '
        "Speed was measured once, during evaluation on the machine named under Provenance, with transformers' own expert code; whatever ran "
        "beside it is in the number. "
        "The marked row has the fewest bits per byte after the last stage.</p>\n"
    )
    scatter = figure(
        plots.tradeoff(run, found), "Quality against active parameters; bars are 95 % intervals.", 400
    )
    scores = f"<details><summary>All scores</summary>{table(tables.scores_table(run), 'sticky')}</details>\n"
    return table(tables.stage_table(run, found), "sticky") + note + scatter + scores


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
    words = f"After {escape(run.stages[-1])}: load of one domain over the mean of the domains, 1 where the expert serves this domain like the others."
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
    content = reliability.axes(run)
    if content is None:
        return ""
    every = table(reliability.tasks(run), "sticky")
    return (
        table(content, "sticky")
        + table(reliability.missing(run))
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


def _settings(run: Gathered) -> str:
    out = [table(tables.differences(run), "settings")]
    shared = [step for step in run.steps if step.key == "dense" or step.key.startswith(PREPARE)]
    for step in [*shared, *(step for step in run.steps if step.key == "dense/evaluate")]:
        out.append(
            f"<details><summary>{escape(step.key)}</summary>{table(tables.settings_table(run, [step]), 'settings')}</details>"
        )
    for stage in run.stages:
        steps = [step for variant in run.variants for step in run.steps if step.key == f"{variant}/{stage}"]
        if steps:
            out.append(
                f"<details><summary>{stage}</summary>{table(tables.settings_table(run, steps), 'settings')}</details>"
            )
    return "\n".join(out) + "\n"


def _provenance(run: Gathered) -> str:
    versions: dict[str, set[str]] = {}
    for step in run.steps:
        for name, value in step.run.get("versions", {}).items():
            versions.setdefault(name, set()).add(value)
        if "python" in step.run:
            versions.setdefault("python", set()).add(step.run["python"])
    words = ", ".join(
        f"{escape(name)} {escape(' and '.join(sorted(found)))}" for name, found in versions.items()
    )
    facts = {step.key: step.manifest.metrics for step in run.steps}
    proofs = ""
    for variant, proof in run.proofs.items():
        if not proof:
            continue
        proofs += (
            f"<p>{escape(variant)}: with all experts on and unit scores the largest logit difference to the parent is "
            f"{proof['max_logit_error']:.2g} (allowed {proof['tolerance']:.2g})"
        )
        error = facts[f"{variant}/construct"].get("mean_relative_error")
        proofs += (
            f"; the split layers' mean relative output error is {cells.percent(error)}"
            if error is not None
            else ""
        )
        proofs += ".</p>\n"
    return f'{proofs}<p class="quiet">Versions: {words}.</p>\n' + table(
        tables.provenance_table(run), "sticky"
    )
