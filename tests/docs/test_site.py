"""The site builds without a broken link, and its reference has every key and every command; commands and settings shown in pages are real."""

import html
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from moesaic import cli, config
from moesaic.reference import commands

ROOT = Path(__file__).parents[2]
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "table.md"]
"""Without the tables that studies write; their pages hold them."""
ENTRY = re.compile(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", re.S)
SNIPPET = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
BASE = {
    "model": {"at": {"kind": "folder", "path": "m"}},
    "data": {"domains": {"a": {"sources": [{"at": {"kind": "files", "path": "x"}}]}}},
    "variants": {"v": {}},
    "stages": ["construct", "pretrain"],
}


def words(text):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


@pytest.fixture(scope="module")
def entries(site):
    """Path of a key -> (what is said of it, path of the section it links to)."""
    found = {}
    for page in (site / "reference" / "configuration").glob("*.html"):
        for term, text in ENTRY.findall(page.read_text()):
            link = re.search(r'href="#([^"]+)"', text)
            found.setdefault(words(term), []).append((words(text), link and link[1]))
    return found


def test_every_page_is_in_the_menu(site):
    menu = set(re.findall(r'href="([^":#]+\.html)"', (site / "index.html").read_text()))
    menu |= {"index.html"}
    assert len(PAGES) > 40
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix().replace("README", "index")
        assert name in menu, name


def test_files_of_the_repository_have_pages(site):
    for name in ("CONTRIBUTING.html", "profiles/slurm/index.html", "config/config.yaml.html"):
        assert (site / "files" / name).exists(), name
    assert 'href="files/config/recipes/timo.yaml.html"' in (site / "recipes.html").read_text()


def test_every_configuration_key_is_in_the_reference(entries, site):
    schema = config.json_schema()
    seen = set()

    def visit(section, path, given):
        for name, item in section["properties"].items():
            full = f"{path}.{name}" if path else name
            assert full in entries, f"{full} is not in the reference"
            value = given.get(name, item.get("default")) if given else item.get("default")
            texts = entries[full]
            inner = list(references(item))
            described = item.get("description") or (inner and schema["$defs"][inner[0]].get("description"))
            if described:
                wanted = words(described.replace("`", "").replace("<", "&lt;"))[:60].rstrip(".")
                assert any(wanted in text.replace("`", "") for text, _ in texts), (full, wanted, texts)
            elif name != "kind":
                pytest.fail(f"{full} has no description")
            if name in section.get("required", []):
                assert any("required" in text for text, _ in texts), full
            elif not inner:
                shown = json.dumps(value).strip('"')
                assert any(f"default {shown}" in text for text, _ in texts), (full, shown, texts)
            if inner and path:
                link = next(link for _, link in texts if link)
                assert link.startswith(full) or link in seen, (full, link)
                if not link.startswith(full):
                    continue
                seen.add(link)
                full = link
            for name_of in inner:
                visit(schema["$defs"][name_of], full, value if isinstance(value, dict) else None)

    def references(item):
        if "$ref" in item:
            yield item["$ref"].rsplit("/", 1)[1]
            return
        for key in ("anyOf", "oneOf", "allOf"):
            for part in item.get(key, []):
                yield from references(part)
        for key in ("items", "additionalProperties"):
            if isinstance(item.get(key), dict):
                yield from references(item[key])

    visit(schema, "", None)
    assert len(entries) > 400


def test_every_command_and_option_is_in_the_reference(site, capsys):
    page = words((site / "reference" / "commands.html").read_text())
    found = next(item for item in cli.parser()._actions if hasattr(item, "choices") and item.choices)
    assert len(found.choices) > 25
    for name, parser in found.choices.items():
        assert f"moesaic {name}" in page, name
        for option in re.findall(r"--[a-z-]+", parser.format_help()):
            assert option in page or option == "--help", (name, option)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_commands_in_pages_are_real(page):
    text = page.read_text()
    blocks = "\n".join(body for kind, body in SNIPPET.findall(text) if kind in ("", "sh", "bash"))
    lines = [*blocks.splitlines(), *(line[4:] for line in text.splitlines() if line.startswith("    "))]
    inline = re.findall(r"`(moesaic [a-z]+ [^`]*)`", text)
    for line in [*(line for line in lines if line.startswith("moesaic ")), *inline]:
        for command in re.split(r"&&|;", line.split(" #")[0]):
            given = shlex.split(re.sub(r"\bK\b", "1", command))
            if given[0] == "moesaic" and "..." not in given:
                cli.parser().parse_args(given[1:])


@pytest.mark.parametrize(
    "page", [*(ROOT / "docs").glob("howto/*.md"), ROOT / "docs/tutorial.md"], ids=lambda path: path.stem
)
def test_settings_in_pages_are_valid(page):
    for kind, body in SNIPPET.findall(page.read_text()):
        if kind != "yaml":
            continue
        raw = yaml.safe_load(body)
        if not set(raw) <= set(config.Config.model_fields):
            raw = {"variants": raw}
        config.check(config.merge(BASE, raw), page.name)


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), (page, tag)
    assert Path(site / "assets" / "iframe-worker.js").exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "profiles/slurm/README.md"])
def test_links_outside_of_the_site_lead_somewhere(page):
    path = ROOT / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text()):
        found = path.parent / target if target else path
        assert found.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, (target, anchor)


def test_help_says_what_each_command_does():
    """The same words as on the page; no command imports its step for it."""
    for name, parser in commands.commands().items():
        shown = "".join(parser.format_help().split())  # lines end behind hyphens, too
        assert "".join(commands.what(name).split()) in shown, name
        assert "75stoppedbyasignalaftersaving" in shown
        assert len(commands.what(name)) > 10, name
