"""Data sets: folders, archives, lists, names, splits, and what is wrong with them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeladder.core.errors import DataError
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.pictures.unlabelled import open_pictures, with_unlabelled

Make = Callable[..., Path]


def zipped(folder: Path, *, prefix: str = "", folders: tuple[str, ...] = ()) -> Path:
    """The folder's files in a .zip beside it."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in folders:
            archive.writestr(prefix + name + "/", b"")
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


SPLIT = {
    f"{part}/{name}/{index}.png": None
    for part in ("train", "val", "test")
    for name in ("hat", "dress")
    for index in range(2)
}


@pytest.mark.parametrize("prefix", ["", "wrapper/"])
def test_folder_and_archive_read_alike(make_folder: Make, prefix: str) -> None:
    """The same pictures, labels, splits and bytes, whichever way they come."""
    folder = make_folder(SPLIT)
    one, two = open_data(folder), open_data(zipped(folder, prefix=prefix))
    described = [(p.path, p.label, p.split, p.read()) for p in one.pictures]
    assert described == [(p.path, p.label, p.split, p.read()) for p in two.pictures]
    assert one.classes == two.classes == ["dress", "hat"]
    train, test = split(one, None, 0)
    assert {p.split for p in train} == {"train"} and {p.split for p in test} == {"test"}
    assert len(train) == len(test) == 4


def test_without_split_folders_a_fixed_quarter_is_held_out(make_folder: Make) -> None:
    """A picture stays on its side when others come, and every class keeps one to train on."""
    files = {f"hat/{index}.png": b"x" for index in range(200)}
    files |= {f"one{index}/only.png": b"x" for index in range(30)}
    folder = make_folder(files)
    train, test = split(open_data(folder), None, 0)
    assert 30 <= sum(p.label == "hat" for p in test) <= 70
    assert {p.label for p in train} == {"hat", *(f"one{index}" for index in range(30))}
    before = {p.path for p in test if p.label == "hat"}
    (folder / "hat" / "new.png").write_bytes(b"x")
    after = {p.path for p in split(open_data(folder), None, 0)[1] if p.label == "hat"}
    assert after - {"hat/new.png"} == before


def test_shots_are_drawn_by_seed(make_folder: Make) -> None:
    """So many per class, the same for a seed, others for another, none of them test pictures."""
    data = open_data(make_folder({f"{c}/{i}.png": b"x" for c in "ab" for i in range(60)}))
    first, test = split(data, 4, 0)
    assert [p.label for p in first] == ["a"] * 4 + ["b"] * 4
    assert [p.path for p in first] == [p.path for p in split(data, 4, 0)[0]]
    assert [p.path for p in first] != [p.path for p in split(data, 4, 1)[0]]
    assert not {p.path for p in first} & {p.path for p in test}


def test_names_aliases_and_templates(make_folder: Make) -> None:
    """classes.yaml inside the folder, inside the archive and beside the archive."""
    text = (
        b"templates: ['a photo of a {}, a garment.']\nlong_sleeve: long-sleeved shirt\n"
        b"hat: {name: sun hat, aliases: [cap, beanie]}\n"
    )
    files = {"hat/0.png": None, "long_sleeve/0.png": None, "red_bag/0.png": None}
    folder = make_folder({**files, "classes.yaml": text})
    inside = zipped(folder)
    bare = zipped(make_folder(files, "bare"))
    bare.with_name("bare.classes.yaml").write_bytes(text)
    for data in (open_data(folder), open_data(inside), open_data(bare)):
        assert data.class_names == ["sun hat", "long-sleeved shirt", "red bag"]
        assert data.names[0].all == ("sun hat", "cap", "beanie")
        assert data.templates == ["a photo of a {}, a garment."]
        assert data.ignored == []


def test_a_class_called_no_keeps_its_name(make_folder: Make) -> None:
    """YAML would read `no` as False."""
    data = open_data(make_folder({"no/0.png": None, "classes.yaml": b"no: on\n"}))
    assert data.class_names == ["on"]


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (b"hatt: cap\n", "'hatt' is not a class", "did you mean 'hat'"),
        (b"hat: {nam: cap}\n", "unknown key 'nam' @ hat", "did you mean 'name'"),
        (b"hat: [cap]\n", "cannot read the entry of 'hat'", "readable name"),
        (b"templates: [a photo]\n", "needs exactly one {}", "a photo of a {}."),
        (b"hat: [\n", "not YAML", "correct the file"),
        (b"- hat\n", "expected class folders as keys", "readable name"),
    ],
)
def test_wrong_names_files(make_folder: Make, text: bytes, message: str, remedy: str) -> None:
    """Each mistake is named, with what to write instead."""
    folder = make_folder({"hat/0.png": None, "classes.yaml": text})
    with pytest.raises(DataError) as caught:
        open_data(folder)
    assert message in caught.value.message and remedy in str(caught.value.remedy)
    assert "classes.yaml" in str(caught.value.where)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("empty", ["coat", "train/coat"])
def test_class_folder_without_pictures(make_folder: Make, empty: str, archived: bool) -> None:
    """An empty class folder is an error that names it, in a folder and in an archive."""
    below = "train/" if "/" in empty else ""
    folder = make_folder({f"{below}hat/0.png": None, f"{below}dress/0.png": None})
    (folder / empty).mkdir()
    (folder / empty / "notes.txt").write_text("none yet")
    path = zipped(folder, folders=(empty,)) if archived else folder
    with pytest.raises(DataError, match=f"'{empty}' has no pictures") as caught:
        open_data(path)
    assert caught.value.exit_code == 4 and "remove the folder" in str(caught.value.remedy)


def test_class_that_only_the_test_side_knows(make_folder: Make) -> None:
    """A label of test/ unknown in train/ is named, with the nearest that is known."""
    folder = make_folder({"train/dress/0.png": None, "test/dresses/0.png": None})
    with pytest.raises(DataError, match="'dresses' of test/ is unknown in train/") as caught:
        open_data(folder)
    assert "did you mean 'dress'" in str(caught.value.remedy)


def test_labels_of_an_adapter(make_folder: Make) -> None:
    """Labels follow the classes given; an unknown one suggests the nearest."""
    data = open_data(make_folder({"hat/0.png": None, "shirt/0.png": None}))
    assert data.labels(data.pictures, ["shirt", "coat", "hat"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="'shirt' is not among the 2 known classes") as caught:
        data.labels(data.pictures, ["hat", "shirts"])
    assert caught.value.exit_code == 4 and "did you mean 'shirts'" in str(caught.value.remedy)


def test_csv_and_jsonl(make_folder: Make) -> None:
    """Paths start at the list; a header is optional; splits are honoured."""
    folder = make_folder({"one.png": None, "two.png": None, "three.png": None})
    plain, headed = folder / "plain.csv", folder / "headed.csv"
    plain.write_text("one.png,hat\ntwo.png,dress\n\nthree.png,hat\n")
    headed.write_text(
        "label,path,split\nhat,one.png,train\ndress,two.png,train\nhat,three.png,val\n"
    )
    lines = folder / "lines.jsonl"
    lines.write_text(
        "\n".join(json.dumps({"path": n, "label": c}) for n, c in [("one.png", "hat")])
    )
    data = open_data(plain)
    assert [(p.path, p.label) for p in data.pictures][1] == ("two.png", "dress")
    assert data.pictures[0].read() == (folder / "one.png").read_bytes()
    assert [p.path for p in split(open_data(headed), None, 0)[1]] == ["three.png"]
    assert open_data(lines).classes == ["hat"]


@pytest.mark.parametrize(
    ("name", "text", "message", "where"),
    [
        ("a.csv", "one.png,hat\nlonely\n", "expected path and label", "a.csv:2"),
        ("a.csv", "path,label,split\none.png,hat,trian\n", "unknown split 'trian'", "a.csv"),
        ("a.csv", "", "the list is empty", "a.csv"),
        ("a.jsonl", '{"path": "x"}\n', "expected an object with path and label", "a.jsonl:1"),
        ("a.jsonl", "not json\n", "expected an object with path and label", "a.jsonl:1"),
        ("a.zip", "not a zip", "not a .zip archive", "a.zip"),
        ("a.txt", "what", "not a folder, .zip, .csv or .jsonl", "a.txt"),
    ],
)
def test_unreadable_lists(tmp_path: Path, name: str, text: str, message: str, where: str) -> None:
    """Each says what and where, by line where there are lines."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / name)
    assert message in caught.value.message and where in str(caught.value.where)
    assert caught.value.remedy


def test_nothing_there(tmp_path: Path) -> None:
    """A missing path and an empty folder are errors that say what to give."""
    with pytest.raises(DataError, match="no pictures here"):
        open_data(tmp_path / "absent")
    with pytest.raises(DataError, match="no pictures found") as caught:
        open_data(tmp_path)
    assert "--data" in str(caught.value.remedy)


def test_only_held_out_pictures(make_folder: Make) -> None:
    """Enough to evaluate on; to train on, it is an error."""
    data = open_data(make_folder({"test/hat/0.png": None}))
    assert data.classes == ["hat"]
    with pytest.raises(DataError, match="'hat' has no training pictures"):
        split(data, None, 0)


def test_files_that_are_no_pictures_are_reported(make_folder: Make) -> None:
    """By their name: left out and listed. Hidden files are passed over."""
    data = open_data(make_folder({"hat/0.png": None, "hat/a.txt": b"x", "hat/.DS_Store": b"x"}))
    assert len(data.pictures) == 1 and data.ignored == ["hat/a.txt"]


def test_archive_members_that_cannot_be_read(make_folder: Make) -> None:
    """A flipped byte is found by its checksum; the archive's other pictures are fine."""
    archive = zipped(make_folder({"hat/0.png": None, "hat/1.png": None}))
    content = bytearray(archive.read_bytes())
    content[60] ^= 0xFF  # inside the first member's data
    archive.write_bytes(content)
    first, second = open_data(archive).pictures
    with pytest.raises(UnreadableError, match="damaged in the archive"):
        first.read()
    assert second.read()


def test_pictures_named_one_by_one(make_folder: Make) -> None:
    """For predict: files as given, folders searched; a missing file speaks when read."""
    folder = make_folder({"a/0.png": None, "b.png": None})
    pictures = open_pictures([folder / "b.png", folder / "a", folder / "absent.png"])
    assert [Path(p.path).name for p in pictures] == ["b.png", "0.png", "absent.png"]
    with pytest.raises(UnreadableError, match="no such file"):
        pictures[2].read()
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in this folder"):
        open_pictures([folder / "empty"])


def test_links_that_go_in_circles_are_passed_over(make_folder: Make) -> None:
    """Two links to a folder above would list its pictures 2^40 times, one to itself is nothing."""
    folder = make_folder({"hat/0.png": None, "shirt/0.png": None})
    for name in ("hat/a", "hat/b", "top"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    (folder / "hat/self.png").symlink_to("self.png")
    data = open_data(folder)
    assert [p.path for p in data.pictures] == ["hat/0.png", "hat/self.png", "shirt/0.png"]
    with pytest.raises(UnreadableError):
        data.pictures[1].read()


def test_a_linked_class_is_a_class(make_folder: Make, tmp_path: Path) -> None:
    """Pictures on another disk, linked to."""
    folder = make_folder({"hat/0.png": None})
    (tmp_path / "elsewhere").mkdir()
    (folder / "hat/0.png").rename(tmp_path / "elsewhere/1.png")
    (folder / "hat").rmdir()
    for name in ("hat", "shirt"):
        (folder / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [p.path for p in open_data(folder).pictures] == ["hat/1.png", "shirt/1.png"]


def test_links_that_multiply_pictures_are_refused(make_folder: Make, tmp_path: Path) -> None:
    """Two links in each of forty folders to the next: no circle, and 2^40 pictures."""
    folder = make_folder({"hat/0.png": None, "shirt/0.png": None})
    places = [tmp_path / f"beside{number}" for number in range(40)]
    for place, following in zip([folder / "hat", *places], places, strict=False):
        following.mkdir()
        for name in ("a", "b"):
            (place / name).symlink_to(following, target_is_directory=True)
    with pytest.raises(DataError, match="in more than 100 ways") as caught:
        open_data(folder)
    assert "remove links" in str(caught.value)


def test_a_folder_that_is_linked_to_by_many_classes_is_in_each(
    make_folder: Make, tmp_path: Path
) -> None:
    folder = make_folder({f"class{number}/0.png": None for number in range(90)})
    (tmp_path / "shared").mkdir()
    (folder / "class0/0.png").rename(tmp_path / "shared/1.png")
    for number in range(90):
        (folder / f"class{number}/more").symlink_to(tmp_path / "shared", target_is_directory=True)
    assert len(open_data(folder).pictures) == 89 + 90


def test_folders_nested_deeper_than_python_calls(make_folder: Make) -> None:
    """A thousand folders in each other are listed like any."""
    folder = make_folder({"hat/0.png": None})
    deep = folder / "hat"
    for _ in range(1200):
        deep = deep / "a"
        deep.mkdir()
    (deep / "1.png").write_bytes((folder / "hat/0.png").read_bytes())
    try:
        assert len(open_data(folder).pictures) == 2
    finally:  # pytest's own removal is not of this depth
        (deep / "1.png").unlink()
        while deep.name == "a":
            deep.rmdir()
            deep = deep.parent


@pytest.mark.parametrize("field", ["file_size", "compress_size", "header_offset"])
def test_archives_of_sizes_that_no_number_holds(tmp_path: Path, field: str) -> None:
    """2^63 and beyond in a zip64 record: a damaged archive, whatever it claims."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("hat/0.png", b"x")
        setattr(out.infolist()[0], field, 2**63 + 5)
    with pytest.raises(DataError, match="cannot read the archive"):
        open_data(archive)


WITH_UNLABELLED = {
    **{f"hat/{index}.png": None for index in range(3)},
    **{f"dress/{index}.png": None for index in range(3)},
    "unlabelled/a.png": None,
    "unlabelled/deep/er/b.png": None,
    "unlabelled/notes.txt": b"no picture",
}


@pytest.mark.parametrize("prefix", ["", "wrapper/"])
def test_pictures_without_a_label_are_of_no_class(make_folder: Make, prefix: str) -> None:
    folder = make_folder(WITH_UNLABELLED)
    for data in (open_data(folder), open_data(zipped(folder, prefix=prefix))):
        assert data.classes == ["dress", "hat"] and len(data.pictures) == 6
        assert [p.path for p in data.unlabelled] == ["unlabelled/a.png", "unlabelled/deep/er/b.png"]
        assert all(p.label == "" and p.read() for p in data.unlabelled)


def test_they_may_lie_beside_the_one_folder_of_everything(
    tmp_path: Path, make_folder: Make
) -> None:
    make_folder({f"top/{name}/{k}.png": None for name in ("hat", "dress") for k in range(3)})
    folder = make_folder({"unlabelled/7.png": None})
    data = open_data(folder)
    assert data.classes == ["dress", "hat"] and len(data.pictures) == 6
    assert [p.path for p in data.unlabelled] == ["unlabelled/7.png"]


def test_another_folder_takes_their_place(make_folder: Make, tmp_path: Path) -> None:
    data = open_data(make_folder(WITH_UNLABELLED))
    elsewhere = tmp_path / "camera"
    elsewhere.mkdir()
    (elsewhere / "1.jpg").write_bytes(b"x")
    assert [p.path for p in with_unlabelled(data, str(elsewhere), use=True).unlabelled] == [
        str(elsewhere / "1.jpg")
    ]
    assert with_unlabelled(data, None, use=True) is data
    assert with_unlabelled(data, str(elsewhere), use=False).unlabelled == []
    with pytest.raises(DataError, match="no folder or .zip here"):
        with_unlabelled(data, str(tmp_path / "gone"), use=True)
