"""Nothing that EdgeLadder writes replaces what it did not make: every writer is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeladder.core.errors import ConfigError
from edgeladder.core.files import building, write_json
from edgeladder.core.ownership import Kind, foreign_part, require_ours


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder that is dear to somebody."""
    folder = tmp_path / "pictures"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "one.jpg").write_bytes(b"a cat")
    (folder / "notes.txt").write_text("all my cats")
    return folder


def make(folder: Path, kind: Kind) -> Path:
    """The least that EdgeLadder makes of a kind."""
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"weights")
    if kind == "bundle":
        values = {"schema_version": 1, "model": {}, "ladder": {}}
        write_json(folder / "manifest.json", {**values, "files": {"adapter.safetensors": {}}})
    elif kind == "pulled":
        write_json(
            folder / "pull.json", {"state": "done", "files": {"run/adapter.safetensors": {}}}
        )
    elif kind == "average":
        write_json(folder / "aggregate.json", {"method": "mean", "weights": {}})
        write_json(folder / "adapter.json", {"sha256": "0"})
    return folder


@pytest.mark.parametrize("kind", ["bundle", "pulled", "average"])
def test_a_folder_is_replaced_only_where_all_of_it_is_ours(
    kind: Kind, tmp_path: Path, pictures: Path
) -> None:
    before = tree(pictures)
    refusal = pytest.raises(ConfigError, match="--out names what EdgeLadder did not make")
    with refusal as refused, building(pictures, kind):
        raise AssertionError("it began to build")
    assert refused.value.exit_code == 2
    assert tree(pictures) == before

    own = make(tmp_path / "own", kind)
    with building(own, kind) as fresh:
        (fresh / "new").write_text("new")
    assert tree(own) == {"new": b"new"}

    mixed = make(tmp_path / "mixed", kind)
    (mixed / "diary").mkdir()
    (mixed / "diary" / "monday.txt").write_text("rain")
    before = tree(mixed)
    with pytest.raises(ConfigError, match="diary/monday.txt"), building(mixed, kind):
        pass
    assert tree(mixed) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_comes_while_a_bundle_is_made_stays(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"

    def build() -> None:
        with building(folder, "bundle") as fresh:
            (fresh / "new").write_text("new")
            folder.mkdir()
            (folder / "precious").write_text("precious")

    with pytest.raises(ConfigError, match="holds no bundle"):
        build()
    assert tree(folder) == {"precious": b"precious"}


def test_an_empty_folder_is_taken_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "empty")
    with building(link, "bundle") as fresh:
        (fresh / "new").write_text("new")
    assert link.is_symlink() and tree(tmp_path / "empty") == {"new": b"new"}


@pytest.mark.parametrize("kind", ["bundle", "run", "cache", "average"])
def test_a_file_is_no_folder(kind: Kind, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("words")
    with pytest.raises(ConfigError, match="--run names .* this is no folder"):
        require_ours(file, kind, option="--run")


@pytest.mark.parametrize("content", ["[1]", "{", '{"name": "my web app", "schema_version": 1}'])
def test_a_manifest_of_another_make_is_no_bundle(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert foreign_part(tmp_path, "bundle") is not None


@pytest.mark.parametrize("kind", ["bundle", "pulled", "average", "adapter"])
def test_a_record_of_a_terabyte_is_not_read(kind: Kind, tmp_path: Path) -> None:
    make(tmp_path / "there", kind)
    for name in ("manifest.json", "pull.json", "aggregate.json", "adapter.json"):
        (tmp_path / "there" / name).touch()
        os.truncate(tmp_path / "there" / name, 1 << 40)
    assert foreign_part(tmp_path / "there", kind) is not None


@pytest.mark.parametrize(
    ("kind", "own", "foreign"),
    [
        ("model", b"\x08\x0a\x12\x10edgeladder 0.1.0:\x00", b"\x08\x08\x12\x07pytorch:\x00"),
        ("page", b"<!DOCTYPE html><title>run \xc2\xb7 EdgeLadder</title>", b"<title>Me</title>"),
        ("page", b'<meta name="generator" content="EdgeLadder">', b"\x00" * 2000),
    ],
)
def test_a_file_is_replaced_only_where_it_is_ours(
    kind: Kind, own: bytes, foreign: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    for content in (b"", own):
        file.write_bytes(content)
        assert foreign_part(file, kind) is None
    file.write_bytes(foreign)
    with pytest.raises(ConfigError, match="--out names what EdgeLadder did not make"):
        require_ours(file, kind)


def test_a_run_is_not_begun_over_files_of_its_names(tmp_path: Path, pictures: Path) -> None:
    require_ours(pictures, "run")  # nothing of it would be replaced
    (pictures / "checkpoints").mkdir()
    (pictures / "worker.log").touch()
    require_ours(pictures, "run")  # as a run that was stopped while planning leaves it
    (pictures / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="plan.json"):
        require_ours(pictures, "run", option="--run")
    (pictures / "plan.json").unlink()
    (pictures / "checkpoints" / "epoch1.pt").touch()
    with pytest.raises(ConfigError, match="checkpoints"):
        require_ours(pictures, "run", option="--run")


def test_an_adapter_replaces_an_adapter_only(tmp_path: Path) -> None:
    own = make(tmp_path / "own", "average")
    assert foreign_part(own, "adapter") is None
    (own / "adapter.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert foreign_part(own, "adapter") == "adapter.safetensors"


def test_a_fleet_writes_only_into_folders_of_its_own(tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip("asyncssh")
    from edgeladder.fleet.pulled import host_folder, require_own_folders

    with pytest.raises(ConfigError, match="--out names what EdgeLadder did not make: cats"):
        require_own_folders(tmp_path, "pictures", ["box"])
    mine = host_folder(tmp_path, "job", "box")
    mine.mkdir(parents=True)
    require_own_folders(tmp_path, "job", ["box"])
    (mine / "one.jpg").write_bytes(b"a cat")
    with pytest.raises(ConfigError, match="nothing pulled"):
        require_own_folders(tmp_path, "job", ["box"])
