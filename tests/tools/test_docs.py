"""Documents point at what is there, and every file of results says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import edgeladder
from tools.bench import figures, result_rows

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


def test_the_readme_is_short_and_shows_a_picture_and_leads_to_the_guides():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures and all((ROOT / name).stat().st_size <= 150_000 for name in pictures)
    linked = set(_LINK.findall(text))
    guides = {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")}
    assert guides - linked <= {"docs/python-reference.md"}  # beside the guide to Python
    assert "tools/test" in text  # continuous integration runs what it names


def test_results_lie_beside_the_benchmarks_with_command_and_commit():
    folder = ROOT / "tools/bench/results"
    rows = [line.split("|") for line in (folder / "README.md").read_text().splitlines()]
    told = {row[1].strip().strip("`"): row for row in rows if len(row) > 4}
    for path in folder.iterdir():
        if path.name != "README.md":
            assert re.search(r"\b[0-9a-f]{7}\b", told[path.name][4]), f"{path.name} has no commit"
            assert told[path.name][3].strip(), f"{path.name} has no command"
    assert not [*ROOT.glob("docs/**/*.csv")]


def test_the_tree_in_the_guide_is_true():
    """Every room of the package is in it, and nothing that is not there."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = text.split("```\nedgeladder/\n")[1].split("```")[0]
    package = {}
    above = ""
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if indent in (2, 4):
            path = above + name if indent == 4 else name
            above = name if indent == 2 and name.endswith("/") else above
            package[path.rstrip("/")] = indent
        elif indent == 0:
            assert (ROOT / name).is_dir(), name
    house = Path(edgeladder.__file__).parent
    assert [name for name in package if not (house / name).exists()] == []
    rooms = {p.parent.name for p in house.glob("*/__init__.py")}
    assert rooms <= set(package)


MEASURED = ["docs/few-shot.md", "docs/nano.md", "docs/notes/few-shot.md"]
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_SHARE = re.compile(r"\| [+-]?\d+\.\d (?:±|%|\|)")


def test_no_merge_left_its_marks():
    marks = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tools/**/*.md")]
    assert [str(page) for page in pages if marks.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("page", MEASURED)
def test_a_table_of_measurements_names_its_file_of_results(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = 0
    for table in _TABLE.finditer(text):
        if not _SHARE.search(table.group()):
            continue
        found += 1
        below = text[table.end() :].lstrip().split("\n\n")[0]
        named = re.search(r"`(tools/bench/results/[\w.-]+\.csv)`", below)
        assert named and (ROOT / named[1]).is_file(), f"no file below: {table.group()[:80]}"
    assert found


def test_the_few_shot_tables_are_what_the_file_of_results_gives():
    rows = result_rows.read(ROOT / "tools/bench/results/few-shot.csv")
    large = [row for row in rows if row["dataset"] == "tinyimagenet"]
    small = [row for row in rows if row["dataset"] != "tinyimagenet"]
    made = f"{figures.table(small)}\n{figures.table(large)}".replace("**", "").splitlines()
    text = (ROOT / "docs/notes/few-shot.md").read_text(encoding="utf-8")
    part = text.split("### Mean of flowers5")[1].split("### Against the targets")[0]
    told = [line for line in part.splitlines() if "±" in line]
    assert [line for line in told if line not in made] == []
    assert len(told) == len([line for line in made if "±" in line])
