"""Pushing: only what is missing, resumed where it broke, verified, switched at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeladder.core.bundle import Bundle
from edgeladder.fleet.agent import agent
from edgeladder.fleet.box.records import (
    AssembleAnswer,
    AssembleRequest,
    BlobPart,
    ReceiveAnswer,
    ReceiveRequest,
)
from edgeladder.fleet.host_pool import run
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.push import bundle_tree, push, push_all, tree_of


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_push_then_nothing_then_what_changed(make_farm: Any, pool_of: Any, bundle: Bundle) -> None:
    farm = make_farm("a", "b")
    tree = bundle_tree(bundle.folder)
    outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
    assert outcome.names("done") == ["a", "b"]
    for box in farm.boxes.values():
        there = box.root / "bundle"
        assert there.is_symlink() and there.resolve().name == bundle.digest
        assert files_of(there.resolve()) == files_of(bundle.folder)
        assert Bundle.open(there).digest == bundle.digest
    outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
    assert outcome.names("unchanged") == ["a", "b"]
    assert all(result.facts["sent_bytes"] == 0 for result in outcome.results)

    data = bundle.folder.parent / "data"
    (data / "cat").mkdir(parents=True)
    (data / "cat" / "1.jpg").write_bytes(b"one")
    both = [tree, tree_of("data", data)]
    outcome = run(pool_of(farm).each("push", lambda box: push_all(box, both)))
    assert [result.facts["sent_bytes"] for result in outcome.results] == [3, 3]
    (data / "cat" / "2.jpg").write_bytes(b"second")
    both = [tree, tree_of("data", data)]
    outcome = run(pool_of(farm).each("push", lambda box: push_all(box, both, prune=True)))
    assert [result.facts["sent_bytes"] for result in outcome.results] == [6, 6]
    box = farm.boxes["a"]
    assert files_of((box.root / "data").resolve()) == files_of(data)
    assert len(list((box.root / "trees" / "data").iterdir())) == 1  # the old one was pruned
    assert Bundle.open(box.root / "bundle").digest == bundle.digest


def test_a_broken_connection_is_resumed(make_farm: Any, pool_of: Any, bundle: Bundle) -> None:
    farm = make_farm("a", proxied=True)
    proxy = farm.boxes["a"].proxy
    tree = bundle_tree(bundle.folder)
    proxy.break_after = len(agent()) + 900_000
    outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
    result = outcome.results[0]
    assert (result.state, result.tries) == ("done", 2)
    assert proxy.break_after is None
    assert result.facts["resumed_bytes"] > 300_000
    assert result.facts["sent_bytes"] + result.facts["resumed_bytes"] == tree.total_bytes
    assert Bundle.open(farm.boxes["a"].root / "bundle").digest == bundle.digest


def test_a_second_command_goes_on_too(make_farm: Any, pool_of: Any, bundle: Bundle) -> None:
    farm = make_farm("a", proxied=True)
    farm.boxes["a"].proxy.break_after = len(agent()) + 900_000
    tree = bundle_tree(bundle.folder)
    outcome = run(pool_of(farm, tries=1).each("push", lambda box: push(box, tree)))
    assert (outcome.results[0].error or {})["kind"] == "lost"
    assert not (farm.boxes["a"].root / "bundle").exists()
    outcome = run(pool_of(farm, tries=1).each("push", lambda box: push(box, tree)))
    assert outcome.results[0].facts["resumed_bytes"] > 300_000


def test_verify_mends_damage(make_farm: Any, pool_of: Any, bundle: Bundle) -> None:
    farm = make_farm("a")
    tree = bundle_tree(bundle.folder)
    run(pool_of(farm).each("push", lambda box: push(box, tree)))
    weights = farm.boxes["a"].root / "bundle" / "backbone" / "weights.bin"
    os.chmod(weights, 0o644)
    with open(weights, "r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
    assert outcome.names("unchanged") == ["a"]  # a quick look does not see it
    outcome = run(pool_of(farm).each("push", lambda box: push(box, tree, verify=True)))
    facts = outcome.results[0].facts
    assert (facts["damaged"], facts["sent_bytes"]) == (1, 1_500_000)
    assert Bundle.open(farm.boxes["a"].root / "bundle", verify=True)


def test_a_part_with_other_bytes_is_sent_again(
    make_farm: Any, pool_of: Any, bundle: Bundle
) -> None:
    farm = make_farm("a")
    tree = bundle_tree(bundle.folder)
    blobs = farm.boxes["a"].root / "blobs"
    blobs.mkdir(parents=True)
    sha = tree.files["backbone/weights.bin"]
    (blobs / f"{sha}.part").write_bytes(b"not the beginning" * 100)
    outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
    assert outcome.results[0].state == "done"
    assert Bundle.open(farm.boxes["a"].root / "bundle", verify=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of six megabytes: a real one for root, else a limit on the file's size."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "edgeladder-test", str(folder)],
        capture_output=True,
    )
    yield folder if done.returncode == 0 else None
    if done.returncode == 0:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(
    make_farm: Any, pool_of: Any, bundle: Bundle, small_disk: Path | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    farm = make_farm("a", root=str(small_disk or "/dev/full/root"))
    tree = bundle_tree(bundle.folder)
    if small_disk is not None:
        (small_disk / "ballast").write_bytes(b"\0" * 3_000_000)
        outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
        error = outcome.results[0].error or {}
        assert error["kind"] == "disk" and "full" in str(error["message"])  # told beforehand
        monkeypatch.setattr("edgeladder.fleet.push.SPARE_BYTES", -10_000_000)
        (small_disk / "ballast").write_bytes(b"\0" * 5_500_000)
        outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
        error = outcome.results[0].error or {}
        assert error["kind"] == "disk" and "No space left" in str(error["message"])  # met
        assert outcome.results[0].tries == 1 and "prune" in str(error["remedy"])
        (small_disk / "ballast").unlink()
        outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
        assert outcome.results[0].facts["resumed_bytes"] > 0
        assert Bundle.open(small_disk / "bundle", verify=True)
    else:
        outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
        assert (outcome.results[0].error or {})["kind"] == "refused"


def test_a_folder_in_the_way_is_left_alone(make_farm: Any, pool_of: Any, bundle: Bundle) -> None:
    farm = make_farm("a")
    mine = farm.boxes["a"].root / "bundle"
    mine.mkdir(parents=True)
    (mine / "keep").write_text("mine")
    tree = bundle_tree(bundle.folder)
    outcome = run(pool_of(farm).each("push", lambda box: push(box, tree)))
    assert "no link of edgeladder's" in str((outcome.results[0].error or {})["message"])
    assert (mine / "keep").read_text() == "mine"


def test_names_that_lead_out_are_refused(make_farm: Any, pool_of: Any, bundle: Bundle) -> None:
    farm = make_farm("a")
    tree = bundle_tree(bundle.folder)
    run(pool_of(farm).each("push", lambda box: push(box, tree)))

    async def attack(box: Any) -> Any:
        files = {"../../escaped": tree.files["ladder/forward.onnx"]}
        return await box.call(AssembleRequest("data", "0" * 64, files), AssembleAnswer)

    outcome = run(pool_of(farm).each("attack", attack))
    assert "not a name inside" in str((outcome.results[0].error or {})["message"])
    assert not list(farm.folder.rglob("escaped"))
    assert isinstance(pool_of(farm).hosts[0], Host)


def test_a_call_given_up_writes_no_more(tmp_path: Path) -> None:
    """Two calls of the controller on one box: the first was given up and still holds bytes."""
    content = os.urandom(1_000_000)
    name = hashlib.sha256(content).hexdigest()
    (tmp_path / "blobs").mkdir()
    request = ReceiveRequest((BlobPart(name, len(content), 0),))
    code = (
        "import sys; from edgeladder.fleet.box import store; "
        "from edgeladder.fleet.box.records import BlobPart, ReceiveRequest; "
        f"print(store.receive({str(tmp_path)!r}, {request!r}, sys.stdin.buffer))"
    )

    def call() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    first = call()
    assert first.stdin is not None and first.stdout is not None
    first.stdin.write(content[:300_000])
    first.stdin.flush()
    part = tmp_path / "blobs" / f"{name}.part"
    while not (part.is_file() and part.stat().st_size == 300_000):
        assert first.poll() is None
        time.sleep(0.01)
    second = call()
    answer, _ = second.communicate(content)
    assert answer.decode().strip() == str(ReceiveAnswer((name,), ()))
    with contextlib.suppress(BrokenPipeError):
        first.stdin.write(content[300_000:])
    with contextlib.suppress(BrokenPipeError):  # closing writes what is still buffered
        first.stdin.close()
    assert first.wait() == -signal.SIGKILL
    first.stdout.close()
    assert hashlib.sha256((tmp_path / "blobs" / name).read_bytes()).hexdigest() == name
    third = call()  # the number of one that ended by itself is not kept
    third.communicate(content)
    assert third.returncode == 0
