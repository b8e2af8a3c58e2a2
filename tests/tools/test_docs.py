"""Documents point at what is there, and every file of results says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tools/**/*.md")])
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    targets = [t for t in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_guide_is_in_the_list():
    listed = _LINK.findall((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    guides = {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"}
    assert guides <= set(listed)


def test_results_lie_beside_the_benchmarks_with_command_and_commit():
    folder = ROOT / "tools/bench/results"
    rows = [line.split("|") for line in (folder / "README.md").read_text().splitlines()]
    told = {row[1].strip().strip("`"): row for row in rows if len(row) > 4}
    for path in folder.iterdir():
        if path.name != "README.md":
            assert re.search(r"\b[0-9a-f]{7}\b", told[path.name][4]), f"{path.name} has no commit"
            assert told[path.name][3].strip(), f"{path.name} has no command"
    assert not [*ROOT.glob("docs/**/*.csv")]
