"""mkdocs hook: the generated reference, and links to files of the repository that are not documentation.

A link such as `../config/config.yaml` works where the repository is read as files. On the site such a file has a page of its own below files/.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from moesaic.reference import commands, keys

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#|<)([^)#\s]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
FOLDERS = {ROOT / "config" / "recipes": "recipes.md"}
"""Folders that have a page of the documentation."""
LANGUAGES = {".yaml": "yaml", ".json": "json", ".py": "python", ".smk": "python", ".toml": "toml"}
ORIGIN: dict[str, Path] = {}
"""Page -> the file of the repository that its links are relative to."""


def on_config(config: Any) -> Any:
    """A new page of a method, a study or a decision needs no line in mkdocs.yml: the menu takes it up."""
    named: set[str] = set(_leaves(config.nav))
    for section in _sections(config.nav):
        if isinstance(section[0], str) and section[0].endswith("README.md"):
            folder = PurePosixPath(section[0]).parent
            found = sorted(f"{folder}/{path.name}" for path in (DOCS / folder).glob("*.md"))
            section += [page for page in found if page not in named]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, the recipes, and a page for each repository file that a page links to."""
    made = keys.pages() | {"reference/commands.md": commands.page(), "recipes.md": recipes()}
    ORIGIN.clear()
    todo = [(uri, DOCS / uri, text) for uri, text in made.items()]
    todo += [(f.src_uri, DOCS / f.src_uri, f.content_string) for f in files.documentation_pages()]
    for uri, text in made.items():
        _add(files, config, uri, text)
    while todo:
        uri, origin, text = todo.pop()
        ORIGIN[uri] = origin
        for target in (_target(origin, match[2]) for match in LINK.finditer(FENCE.sub("", text))):
            page = _page_of(target)
            if not target.is_file() or not page.startswith("files/") or files.get_file_from_path(page):
                continue
            content = _page(target)
            _add(files, config, page, content, in_nav=False)
            todo.append((page, target, content if target.suffix == ".md" else ""))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave the documentation's folder at the pages that stand for their files."""
    uri = page.file.src_uri
    origin = ORIGIN.get(uri)
    if origin is None:
        return markdown

    def relink(match: re.Match[str]) -> str:
        target = _target(origin, match[2])
        if not target.exists() or (target.is_file() and DOCS in target.parents and DOCS in origin.parents):
            return match[0]
        link = os.path.relpath(_page_of(target), PurePosixPath(uri).parent)
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    return LINK.sub(relink, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Give the theme's search dialog a name, which screen readers ask for."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def recipes() -> str:
    """A page with the opening comment of each recipe."""
    parts = [
        "# Recipes\n\nEach is a whole configuration; `moesaic init FOLDER --recipe NAME` begins a project with one, and "
        "`moesaic plan FILE` says what it takes.\n"
    ]
    for path in sorted((ROOT / "config" / "recipes").glob("*.yaml")):
        comment = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if "yaml-language-server" not in line:
                text, _, command = line.removeprefix("#").removeprefix(" ").partition(":  moesaic ")
                comment += [f"{text}:", f"  moesaic {command}"] if command else [text]
        prose = [line for line in comment if not line.startswith("  ")]
        shell = [f"    {line.strip()}" for line in comment if line.startswith("  ")]
        parts += [f"\n## {path.stem}\n", _escape("\n".join(prose)), ""]
        parts += [*shell, ""] if shell else []
        parts.append(f"[The file](../config/recipes/{path.name})\n")
    return "\n".join(parts)


def _sections(nav: list[Any]) -> Iterator[list[Any]]:
    """Every list of pages of the menu."""
    yield nav
    for item in nav:
        for value in item.values() if isinstance(item, dict) else ():
            if isinstance(value, list):
                yield from _sections(value)


def _leaves(nav: list[Any]) -> Iterator[str]:
    for item in nav:
        for value in item.values() if isinstance(item, dict) else (item,):
            yield from _leaves(value) if isinstance(value, list) else (value,)


def _escape(text: str) -> str:
    return re.sub(r"(\S+/[\w./-]+\.(?:md|yaml))", r"`\1`", text).replace("`(", "(`").replace(")`", "`)")


def _target(origin: Path, link: str) -> Path:
    return Path(os.path.normpath(origin.parent / link))


def _page_of(target: Path) -> str:
    """Path below docs/ of the page that stands for a file or a folder."""
    if target in FOLDERS:
        return FOLDERS[target]
    if target.is_dir():
        target = target / "README.md"
    if DOCS in target.parents:
        return target.relative_to(DOCS).as_posix()
    if ROOT not in target.parents:
        return ""
    path = target.relative_to(ROOT).as_posix()
    return f"files/{path}" if target.suffix == ".md" else f"files/{path}.md"


def _page(target: Path) -> str:
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return text
    return f"# {target.relative_to(ROOT).as_posix()}\n\n~~~~ {LANGUAGES.get(target.suffix, 'text')}\n{text}\n~~~~\n"


def _add(files: Any, config: Any, uri: str, content: str, in_nav: bool = True) -> None:
    from mkdocs.structure.files import File, InclusionLevel

    level = InclusionLevel.INCLUDED if in_nav else InclusionLevel.NOT_IN_NAV
    files.append(File.generated(config, uri, content=content, inclusion=level))
