"""The folder of links that a person sorts, and what is taken from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeladder.core.errors import ConfigError
from edgeladder.core.moves import move_pictures, undo
from edgeladder.core.sorting import lay_out, require_sortable, sorted_pictures


@pytest.fixture
def waiting(tmp_path: Path) -> list[str]:
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "unlabelled").mkdir(exist_ok=True)
        (tmp_path / "unlabelled" / name).write_text(name)
    (tmp_path / "data" / "train" / "rose").mkdir(parents=True)
    return [str(tmp_path / "unlabelled" / name) for name in ("x.jpg", "y.jpg")]


def lay(tmp_path: Path, paths: list[str]) -> Path:
    folder = tmp_path / "to-label"
    require_sortable(folder)
    lay_out(folder, paths, ["rose"], lambda path: b"of an archive")
    return folder


def test_sorted_links_become_labelled_pictures_and_go_back(tmp_path, waiting):
    folder = lay(tmp_path, [*waiting, "a.zip/z.jpg"])
    assert sorted(os.listdir(folder)) == [
        ".suggested.json", "001-x.jpg", "002-y.jpg", "003-z.jpg", "rose"
    ]  # fmt: skip
    assert (folder / "001-x.jpg").is_symlink() and (folder / "003-z.jpg").read_bytes()
    (folder / "new class").mkdir()
    (folder / "001-x.jpg").rename(folder / "rose/001-x.jpg")
    (folder / "003-z.jpg").rename(folder / "new class/003-z.jpg")
    with pytest.raises(ConfigError, match="sorted pictures"):
        require_sortable(folder)
    wanted, links = sorted_pictures(folder, tmp_path / "data")
    move_pictures(tmp_path / "data", wanted)
    assert (tmp_path / "data/train/rose/x.jpg").read_text() == "x.jpg"
    assert (tmp_path / "data/train/new class/003-z.jpg").read_bytes() == b"of an archive"
    assert [link.name for link in links] == ["001-x.jpg"] and not Path(waiting[0]).exists()
    undo(tmp_path / "data")
    assert Path(waiting[0]).read_text() == "x.jpg"
    assert (folder / "new class/003-z.jpg").is_file()


def test_a_new_suggestion_replaces_links_and_nothing_else(tmp_path, waiting):
    folder = lay(tmp_path, waiting)
    (folder / "notes.txt").write_text("mine")
    lay(tmp_path, waiting[1:])
    assert sorted(os.listdir(folder)) == [".suggested.json", "001-y.jpg", "notes.txt", "rose"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="did not make"):
        require_sortable(other)
    with pytest.raises(ConfigError, match="no suggestion"):
        sorted_pictures(other, tmp_path / "data")


@pytest.mark.parametrize("name", ["test", "Train", ".hidden"])
def test_a_folder_that_is_no_class_is_said(tmp_path, waiting, name):
    folder = lay(tmp_path, waiting)
    (folder / name).mkdir()
    (folder / "001-x.jpg").rename(folder / name / "001-x.jpg")
    with pytest.raises(ConfigError, match="no name of a class"):
        sorted_pictures(folder, tmp_path / "data")


def test_a_link_to_a_picture_that_is_gone_is_said(tmp_path, waiting):
    folder = lay(tmp_path, waiting)
    (folder / "001-x.jpg").rename(folder / "rose/001-x.jpg")
    Path(waiting[0]).unlink()
    with pytest.raises(ConfigError, match="gone"):
        sorted_pictures(folder, tmp_path / "data")
