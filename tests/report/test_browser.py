"""The report in a real browser: on a phone, in the dark and printed, asking nobody for anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeladder.report import write_report
from tests.report.test_page import a_run
from tests.serve.browser import Browser

# every text that is seen, with its size on the screen; a drawing's letters shrink with it
_SMALL = """
const small = [];
for (const item of document.querySelectorAll('body *')) {
  const words = [...item.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
  if (!words.length || !item.getClientRects().length) continue;
  const drawing = item.ownerSVGElement;
  if (item.tagName === 'title') continue;
  const scale = drawing ? drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width : 1;
  const size = scale * parseFloat(getComputedStyle(item).fontSize);
  if (size < 11) small.push([size, words[0].data]);
}
return small"""
_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
# contrast of text and its card, WCAG 2.2: (lighter + 0.05) / (darker + 0.05) of relative luminance
_CONTRAST = """
const luminance = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const card = luminance(getComputedStyle(document.querySelector('section')).backgroundColor);
return ['section p', 'section b', 'section th', 'dt', '.legend', '.bars span'].map(css => {
  const ink = luminance(getComputedStyle(document.querySelector(css)).color);
  return (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05);
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    names = ["dress", "a class with a name that is long", "T" * 30, *"abcdefgh"]
    return write_report(a_run(tmp_path_factory.mktemp("report") / "run", names))


def look(browser: Browser, page: Path, width: int, **media: str) -> None:
    """Open the page on a screen of this width, `scheme` light or dark, `media` screen or print."""
    features = [{"name": "prefers-color-scheme", "value": media.get("scheme", "light")}]
    browser.devtools(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=800, deviceScaleFactor=1, mobile=width < 600,
    )  # fmt: skip
    browser.devtools(
        "Emulation.setEmulatedMedia", media=media.get("media", "screen"), features=features
    )
    browser.open(page.as_uri())


@pytest.mark.parametrize("width", [360, 390, 1200])
def test_it_fits_and_can_be_read(browser, page, width):
    look(browser, page, width)
    assert browser.run(_WIDE) == 0  # what is wider scrolls in itself
    assert browser.run(_SMALL) == []
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_card(browser, page, scheme):
    look(browser, page, 390, scheme=scheme)
    assert [ratio for ratio in browser.run(_CONTRAST) if ratio < 4.5] == []
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 26)"}[scheme]


def test_it_prints_on_white_and_no_wider_than_the_paper(browser, page):
    look(browser, page, 718, media="print", scheme="dark")  # A4 within its margins
    assert browser.run(_WIDE) == 0
    for css in ("body", "section"):  # whatever the screen's palette is
        colour = f"return getComputedStyle(document.querySelector('{css}')).backgroundColor"
        assert browser.run(colour) == "rgb(255, 255, 255)"
    assert min(browser.run(_CONTRAST)) >= 4.5
    shown = "return getComputedStyle(document.querySelector('.bars i')).printColorAdjust"
    assert browser.run(shown) == "exact"
