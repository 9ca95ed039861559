"""The site in a real browser: from disk with the network off, at three widths, light and dark, and looked at by axe-core."""

import os

import pytest
from report import browser

from moesaic.data import fetch
from moesaic.errors import InputError
from moesaic.schema import PackageFile

pytestmark = pytest.mark.browser

AXE = PackageFile(
    kind="npm",
    package="axe-core",
    version="4.14.1",
    sha256="e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
    archive="tarball",
    file="package/axe.min.js",
)
REQUIRED = os.environ.get("MOESAIC_REQUIRE_BROWSER")
LOOKED_AT = (
    ("index.html", False),
    ("tutorial.html", True),
    ("howto/own-model.html", False),
    ("reference/configuration/pretrain.html", True),
    ("reference/commands.html", False),
    ("recipes.html", True),
    ("methods/construction/measured.html", False),
    ("studies/construction.html", True),
)
OPENED = (
    ("index.html", 1280, False),
    ("index.html", 820, True),
    ("index.html", 390, False),
    ("reference/commands.html", 820, False),
    ("studies/construction.html", 390, True),
)
IMAGES = "[...document.images].filter(e => !e.complete || e.naturalWidth === 0).map(e => e.src)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SCHEME = "document.body.getAttribute('data-md-color-scheme')"
SEARCH = """(async () => {
  const input = document.querySelector('.md-search__input');
  document.querySelector('#__search').click();
  input.focus(); input.value = 'softmax times exactly'; input.dispatchEvent(new Event('input', {bubbles: true}));
  input.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true, key: 'h'}));
  for (let i = 0; i < 100; i++) {
    const found = [...document.querySelectorAll('.md-search-result__link')].map(e => e.getAttribute('href'));
    if (found.length) return found;
    await new Promise(done => setTimeout(done, 100));
  }
  return [];
})()"""
AUDIT = """axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']}).then(r => r.violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3).map(n => n.target.join(' ')).join('; ')}`))"""


@pytest.fixture(scope="module")
def pages(site):
    """The site, where there is a browser."""
    if browser.find() is None:
        assert not REQUIRED, "MOESAIC_REQUIRE_BROWSER is set, but there is no Chromium"
        pytest.skip("needs headless Chromium")
    return site


@pytest.mark.parametrize(("page", "width", "dark"), OPENED)
def test_a_page_opens_from_disk(pages, page, width, dark):
    expressions = [IMAGES, OVERFLOW, SCHEME]
    seen = browser.visit((pages / page).as_uri(), expressions, width=width, dark=dark, offline=True)
    missing, overflow, scheme = seen.values
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert missing == []
    assert overflow <= 0, "the page scrolls sideways; only tables and code may"
    assert scheme == ("slate" if dark else "default")


def test_search_works_from_disk(pages):
    seen = browser.visit((pages / "index.html").as_uri(), [SEARCH], offline=True)
    assert seen.errors == []
    assert any("0002-router-length" in link for link in seen.values[0]), seen.values


@pytest.mark.network
@pytest.mark.parametrize(("page", "dark"), LOOKED_AT)
def test_nothing_serious_for_people_who_hear_or_type(pages, page, dark):
    try:
        axe = fetch.package_file(AXE).read_text(encoding="utf-8")
    except InputError as error:
        if REQUIRED:
            raise
        pytest.skip(f"axe-core is not to be had: {error}")
    seen = browser.visit((pages / page).as_uri(), [f"{axe}; true", AUDIT], dark=dark, offline=True)
    assert seen.values[1] == [], "\n".join(seen.values[1])
