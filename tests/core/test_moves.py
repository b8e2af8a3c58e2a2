"""Moves between class folders: journalled, undoable, whole after a power cut at any operation."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from edgeladder.core import disk
from edgeladder.core.decisions import read_decisions, write_decisions
from edgeladder.core.errors import ConfigError, DataError, IntegrityError
from edgeladder.core.files import sha256_file
from edgeladder.core.moves import JOURNALS, Journal, Move, Wanted, finish, move_pictures, undo
from edgeladder.core.records import to_json
from edgeladder.core.review import Duplicate, Place, Review, Suspect

WANTED = [Wanted("a/1.jpg", "b"), Wanted("a/2.jpg", "b"), Wanted("c/1.jpg", "new")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "data"


def state(data: Path) -> dict[str, str]:
    """Every picture's place and content, journals left out."""
    files = [p for p in data.rglob("*") if p.is_file() and ".edgeladder" not in p.parts]
    return {p.relative_to(data).as_posix(): p.read_text() for p in files}


BEFORE = {name: name for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg")}
AFTER = {"b/1-1.jpg": "a/1.jpg", "b/2.jpg": "a/2.jpg", "b/1.jpg": "b/1.jpg", "new/1.jpg": "c/1.jpg"}


def test_moves_are_made_and_taken_back(data):
    assert [move.target for move in move_pictures(data, WANTED)] == [
        "b/1-1.jpg", "b/2.jpg", "new/1.jpg"
    ]  # fmt: skip
    assert state(data) == AFTER
    assert not (data / "a").exists()  # no empty class is left
    undo(data)
    assert state(data) == BEFORE and not (data / "new").exists()
    with pytest.raises(ConfigError, match="nothing to undo"):
        undo(data)


def test_fixes_are_taken_back_one_by_one(data):
    move_pictures(data, WANTED[:1])
    move_pictures(data, [Wanted("b/1-1.jpg", "c")])
    undo(data)
    undo(data)
    assert state(data) == BEFORE


def test_a_picture_that_lies_there_already_stays(data):
    assert move_pictures(data, [Wanted("a/1.jpg", "a")]) == []
    assert not (data / JOURNALS).exists()


@pytest.mark.parametrize(
    ("source", "folder"),
    [("a/9.jpg", "b"), ("a", "b"), ("a/1.jpg", "../x"), ("a/1.jpg", ".hidden"), ("a/1.jpg", "")],
)
def test_what_is_no_picture_or_class_moves_nothing(data, source, folder):
    with pytest.raises(ConfigError):
        move_pictures(data, [Wanted("a/2.jpg", "b"), Wanted(source, folder)])
    assert state(data) == BEFORE


def test_a_link_and_a_double_decision_are_refused(data):
    (data / "a/link.jpg").symlink_to(data / "b/1.jpg")
    with pytest.raises(ConfigError, match="plain file"):
        move_pictures(data, [Wanted("a/link.jpg", "b")])
    with pytest.raises(ConfigError, match="twice"):
        move_pictures(data, [Wanted("a/1.jpg", "b"), Wanted("a/1.jpg", "c")])


def test_a_picture_changed_since_is_not_taken_back(data):
    move_pictures(data, WANTED)
    (data / "b/2.jpg").write_text("edited")
    with pytest.raises(ConfigError, match="changed or moved since"):
        undo(data)
    assert state(data)["b/1-1.jpg"] == "a/1.jpg"


class _Cut(disk.Disk):
    """The power goes before the n-th operation that changes names."""

    def __init__(self, left: int):
        self.left = left

    def _step(self) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def make_folder(self, path: Path) -> None:
        self._step()
        super().make_folder(path)

    def remove_folder(self, path: Path) -> None:
        self._step()
        super().remove_folder(path)


@pytest.mark.parametrize("cut", range(14))
def test_a_power_cut_leaves_every_picture_and_the_next_call_finishes(data, cut):
    with disk.using(_Cut(cut)), contextlib.suppress(KeyboardInterrupt):
        move_pictures(data, WANTED)
    assert sorted(state(data).values()) == sorted(BEFORE.values())
    finish(data)
    assert state(data) in (BEFORE, AFTER)
    if state(data) == BEFORE:  # it was cut before the journal
        move_pictures(data, WANTED)
    with disk.using(_Cut(cut)), contextlib.suppress(KeyboardInterrupt):
        undo(data)
    finish(data)
    if state(data) != BEFORE:
        undo(data)
    assert state(data) == BEFORE


def a_review() -> Review:
    places = [Place(path=f"train/{c}/x.jpg", label=c, split="train") for c in "ab"]
    return Review(
        count=3, classes=["a", "b"], suspected=1, repeated=0, confused=[], few=8, small_classes=[],
        skipped=[],
        suspects=[
            Suspect(path="train/a/1,\n.jpg", label="a", probability=0.01, suggested="b",
                    suggested_probability=0.9)
        ],
        duplicates=[
            Duplicate(kind="identical", similarity=1, across_classes=True, across_splits=False,
                      pictures=places)
        ],
    )  # fmt: skip


def test_a_list_decides_nothing_until_it_is_filled_in(tmp_path):
    path = tmp_path / "d.csv"
    write_decisions(path, a_review())
    assert read_decisions(path) == []
    text = path.read_text()
    assert '"train/a/1,\n.jpg",a,b,\n' in text and "train/b/x.jpg,b,,\n" in text
    path.write_text(text.replace(",a,b,\n", ",a,b,b\n").replace("b/x.jpg,b,,", "b/x.jpg,b,,-"))
    assert read_decisions(path) == [
        Wanted("train/a/1,\n.jpg", "train/b"),
        Wanted("train/b/x.jpg", ".edgeladder/set-aside/train/b"),
    ]


def test_a_list_replaces_an_empty_one_of_its_own_and_nothing_else(tmp_path):
    path = tmp_path / "d.csv"
    write_decisions(path, a_review())
    empty = path.read_bytes()
    write_decisions(path, a_review())
    filled = empty.replace(b",a,b,\n", b",a,b,b\n")
    os.mkfifo(tmp_path / "pipe")
    for content in (filled, b"path,label\na.jpg,a\n", b"", b"path,decision\na,\n", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="--decisions"):
            write_decisions(path, a_review())
        assert path.read_bytes() == content
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigError, match="--decisions"):
            write_decisions(place, a_review())


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n", "path,decision\n,b\n", "path,decision\nx,train\n", "path,decision\nx,a/b\n",
     "path,decision\nx,b,c,d\n", 'path,decision\n"x\0",b\n',
     "x" * 200_000 + "\n"],
)  # fmt: skip
def test_a_list_that_is_none_is_said_by_its_line(tmp_path, text):
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(DataError) as found:
        read_decisions(path)
    assert "line" in (found.value.where or "")


def hostile(data: Path, moves: list[Move], state: str = "moving", code: str = "") -> None:
    """A journal that came with the pictures."""
    journal = Journal(state=state, moves=moves, code=code)
    (data / JOURNALS).mkdir(parents=True, exist_ok=True)
    (data / JOURNALS / "000001.json").write_text(json.dumps(to_json(journal)))


@pytest.mark.parametrize("state_of_it", ["moving", "undoing", "done"])
@pytest.mark.parametrize("how", ["absolute", "climbing", "link"])
def test_a_journal_that_came_with_the_pictures_moves_nothing_outside(
    data, tmp_path, monkeypatch, state_of_it, how
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = tmp_path / "home"
    home.mkdir()
    (data / "out").symlink_to(home)
    target = {"absolute": str(home / "x"), "climbing": "../home/x", "link": "out/x"}[how]
    ends = ("a/1.jpg", target) if state_of_it == "moving" else (target, "a/1.jpg")
    move = Move(source=ends[0], target=ends[1], sha256=sha256_file(data / "a/1.jpg"))
    for code in ("", "0" * 64, "\ud800"):
        hostile(data, [move], state_of_it, code)
        with pytest.raises(IntegrityError, match="not written here"):
            finish(data) or undo(data)
        assert not (home / "x").exists() and (data / "a/1.jpg").exists()


def test_what_this_machine_moved_from_elsewhere_is_taken_back(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    picture = tmp_path / "elsewhere.jpg"
    picture.write_text("new")
    move_pictures(data, [Wanted(str(picture), "b")])
    assert not picture.exists() and (data / "b/elsewhere.jpg").read_text() == "new"
    undo(data)
    assert picture.read_text() == "new" and state(data) == BEFORE


def test_a_journals_name_is_a_number(data):
    (data / JOURNALS).mkdir(parents=True)
    (data / JOURNALS / "²۳.json").write_text("{}")
    assert len(move_pictures(data, WANTED)) == 3


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg"])
def test_a_decision_moves_nothing_from_outside(tmp_path, name):
    path = tmp_path / "d.csv"
    path.write_text(f"path,decision\n{name},b\n")
    with pytest.raises(DataError, match="leads out"):
        read_decisions(path)
