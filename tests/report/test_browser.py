"""The page in a real browser, from disk and with the network off."""

import os

import pytest
from report import browser, fake_results

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if browser.find() is None:
        assert not os.environ.get("MOESAIC_REQUIRE_BROWSER"), (
            "MOESAIC_REQUIRE_BROWSER is set, but there is no Chromium"
        )
        pytest.skip("needs headless Chromium")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("browser")
        patch.chdir(folder)
        config = fake_results.load_config(["construct", "pretrain", "distill"])
        fake_results.build(config)
        fake_results.report(config)
        yield folder / "results" / "report.html"


SMALLEST = "Math.min(...[...document.querySelectorAll('svg')].filter(e => !e.closest('details')).map(e => {const r = e.getBoundingClientRect(); return Math.min(r.width, r.height)}))"
HIDDEN = "document.querySelectorAll('details').forEach(e => e.open = true) ?? Math.min(...[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().height))"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
COLORS = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_opens_offline(page, width, dark):
    seen = browser.visit(
        page.as_uri(),
        [SMALLEST, HIDDEN, OVERFLOW, COLORS, "document.title"],
        width=width,
        dark=dark,
        offline=True,
    )
    smallest, hidden, overflow, (background, ink), title = seen.values
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    assert smallest > 100
    assert hidden > 100
    assert overflow <= 0, "the page scrolls sideways; only tables may"
    assert title == "default: dense to Mixture of Experts"
    dark_background = sum(map(int, background[4:-1].split(","))) < 150
    assert dark_background == dark
    light_ink = sum(map(int, ink[4:-1].split(","))) > 380
    assert light_ink == dark


def test_page_prints(page, tmp_path):
    browser.visit(page.as_uri(), offline=True, pdf=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
