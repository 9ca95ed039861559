"""HTML of a table and of a figure."""

import re
from collections.abc import Sequence

from moesaic.report.tables import Table


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


def units(text: str) -> str:
    """Numbers stay on one line with their units."""
    return re.sub(r"(\d) (%|[TBMk]\b)", "\\1&nbsp;\\2", text)


def _text(index: int, content: Table) -> str:
    return ' class="text"' if index in content.text else ""
