"""The page in a real browser: a picture is chosen, the labels appear; a token is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.browser import Browser, absolute
from tests.serve.conftest import serving

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def server(nano_run):
    given = {"EDGELADDER_TOKEN": TOKEN}
    with serving(nano_run, "--host", "0.0.0.0", environment=given) as running:
        yield running


def test_a_picture_from_a_phone(browser: Browser, server, pictures, tmp_path: Path):
    page = f"http://127.0.0.1:{server.port}/"
    browser.open(f"{page}#{TOKEN}")
    browser.until("h1", "What is this?")
    assert browser.url() == page  # the token has left the address
    assert not browser.shown("#unlock")
    browser.type("#camera", absolute(pictures[0]))
    found = browser.until("#labels", "%")
    code, answer, _ = server.predict(pictures[0], "?top=5", Authorization=f"Bearer {TOKEN}")
    assert code == 200
    for row in answer["predictions"][0]["labels"]:
        assert f"{row['label']} {100 * row['probability']:.1f} %" in " ".join(found.split())
    assert browser.run("return document.querySelector('#picture').naturalWidth") > 0

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    browser.type("#file", absolute(broken))
    assert "cannot be read" in browser.until("#said", "picture")
    assert not browser.shown("#labels")
    errors = [line for line in browser.complaints() if "422" not in line]
    assert errors == []  # nothing that the page's own policy forbids, nothing missing


def test_without_the_token_it_is_asked_for(browser: Browser, server, pictures):
    browser.open(f"http://localhost:{server.port}/")  # another origin: nothing is remembered
    browser.type("#file", absolute(pictures[0]))
    browser.until("#said", "the token is missing or wrong")
    assert browser.shown("#unlock")
    browser.type("#token", TOKEN)
    browser.click("#unlock button")
    browser.until("#labels", "%")
    assert not browser.shown("#unlock")
