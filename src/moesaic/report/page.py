"""One self-contained HTML page: no script, no request, light and dark, phone and paper."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from moesaic.report import cells, sections
from moesaic.report.gather import Gathered
from moesaic.report.html import units

CSS = Path(__file__).with_name("page.css")


def render(run: Gathered, found: Sequence[dict[str, Any]], verdict: str) -> str:
    """The page. `found` are the rows of the stage table."""
    shown = sections.every(run, found)
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{title}</h2>{html}</section>\n'
        for key, title, html in shown
    )
    name = escape(run.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{name}: dense to Mixture of Experts</title>\n<style>\n{CSS.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f'<header><h1>{name}: dense to Mixture of Experts</h1>\n<p class="verdict">{units(escape(verdict))}</p>\n'
        f'{_parent(run)}<nav aria-label="Contents">{links}</nav></header>\n<main>\n{body}</main>\n'
        '<footer class="quiet">Made by Moesaic from the manifests, scores and metrics in <code>results/</code>; '
        "the same numbers for programs: <code>results/summary.json</code>.</footer>\n</body>\n</html>\n"
    )


def _parent(run: Gathered) -> str:
    facts = run.dense.model.metrics
    words = (
        f"Dense parent: {escape(facts['architecture'])}, {cells.short(facts['parameters'])} parameters, {facts['layers']} layers, "
        f"width {facts['hidden']}, FFN {facts['ffn']}. Stages: {escape(' → '.join(run.stages))}. Variants: {escape(', '.join(run.variants))}."
    )
    return f'<p class="quiet">{words}</p>\n'
