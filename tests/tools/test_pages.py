"""Parts of the guides that are made from the code are as it is, and the site builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.pages import make

ROOT = Path(__file__).resolve().parents[2]
_FETCHED = re.compile(  # when a page is read; a link that a person may follow is none
    r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(?:https?:)?//"
    r"|<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?(?:https?:)?//"
)


def test_what_is_made_from_the_code_is_as_the_code_is():
    texts = {page.name: page.read_text("utf-8") for page in make.pages()}
    assert [n for n in make.PARTS if f"<!-- made: {n} -->" not in "".join(texts.values())] == []
    old = [name for name, text in texts.items() if make.renewed(text) != text]
    assert old == [], "python -m tools.pages.make"


def test_a_part_is_replaced_between_its_own_marks():
    text = (
        "a\n<!-- made: devices -->\nwas here\n<!-- end -->\nb\n"
        "<!-- made: profiles -->\n<!-- end -->\nc\n"
    )
    found = make.renewed(text)
    assert "was here" not in found and "| `raspberry-pi-5` |" in found and "| `default` |" in found
    assert [line for line in found.splitlines() if line in ("a", "b", "c")] == ["a", "b", "c"]
    assert make.renewed(found) == found


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra [docs]")
def test_the_site_builds_strictly_and_asks_nothing_of_others(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [*tmp_path.glob("*.html"), *tmp_path.glob("notes/*.html")]
    assert len(pages) > 30 and (tmp_path / "search").is_dir()
    assert [page.name for page in pages if _FETCHED.search(page.read_text("utf-8"))] == []
