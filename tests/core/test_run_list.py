"""The list of runs, the pin, and what removing a run takes away."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError
from edgeladder.core.intervals import wilson
from edgeladder.core.run_list import (
    PINNED,
    list_runs,
    pin_run,
    pinned_run,
    removable_bytes,
    remove_run,
    unpin,
)


def make_run(folder: Path, name: str, *, finished: bool = True, stamp: int = 0) -> Path:
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("request: {}\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000000008.safetensors").write_bytes(b"8")
    for store in ("image-0123456789abcdef-fp16", "image-0123456789abcdef-int8-cuda"):
        (run / "cache" / store).mkdir(parents=True)
        (run / "cache" / store / "00000000.safetensors").write_bytes(b"0")
    if finished:
        (run / "adapter.json").write_text("{}")
        (run / "adapter.safetensors").write_bytes(b"x" * 100)
        result = {
            "accuracy": {"tuned": 0.75, "zero_shot": 0.5, "split": "test", "count": 12},
            "counts": {"train": 9, "test": 12, "classes": 3},
            "memory": {
                "budget_bytes": 1000,
                "phases": {"train": {"measured_peak_bytes": 7}, "x": {"measured_peak_bytes": 9}},
            },
        }
        (run / "result.json").write_text(json.dumps(result))
        os.utime(run / "adapter.json", (1_700_000_000 + stamp, 1_700_000_000 + stamp))
    return run


def test_the_list_is_newest_first_and_says_what_is_known(tmp_path):
    make_run(tmp_path, "old", stamp=1)
    make_run(tmp_path, "new", stamp=50)
    make_run(tmp_path, "cut", finished=False)
    (make_run(tmp_path, "bad", stamp=2) / "result.json").write_text('{"accuracy": []}')
    found = {run.name: run for run in list_runs(tmp_path)}
    assert list(found) == ["cut", "new", "bad", "old"]
    assert [run.state for run in found.values()] == [
        "unfinished", "finished", "damaged", "finished"
    ]  # fmt: skip
    new = found["new"]
    assert (new.accuracy, new.count, new.peak_bytes, new.classes) == (0.75, 12, 9, 3)
    assert new.interval == pytest.approx(wilson(9, 12))
    assert new.zero_shot_interval == pytest.approx(wilson(6, 12))
    assert found["cut"].interval is None
    assert found["old"].age_seconds - new.age_seconds == pytest.approx(49, abs=1)
    assert list_runs(tmp_path / "none") == []


def test_a_pinned_run_serves_until_it_is_unpinned(tmp_path):
    from edgeladder.cli import options

    old, new = make_run(tmp_path, "old", stamp=1), make_run(tmp_path, "new", stamp=50)
    assert options.served_run(None, folder=tmp_path) == new
    pin_run(old)
    assert options.served_run(None, folder=tmp_path) == old
    assert options.served_run(new, folder=tmp_path) == new
    assert [run.pinned for run in list_runs(tmp_path)] == [False, True]
    assert unpin(tmp_path) and not unpin(tmp_path)
    assert pinned_run(tmp_path) is None
    with pytest.raises(ConfigError, match="only a finished run"):
        pin_run(make_run(tmp_path, "cut", finished=False))


@pytest.mark.parametrize("content", ["[", "[]", '{"run": "../x"}', '{"run": "gone"}', '{"run": 3}'])
def test_a_pin_that_leads_nowhere_is_said(tmp_path, content):
    runs = tmp_path / "runs"
    make_run(runs, "run")
    make_run(tmp_path, "x")
    (runs / PINNED).write_text(content)
    with pytest.raises(ConfigError, match="not there any more") as found:
        pinned_run(runs)
    assert "unpin" in (found.value.remedy or "")


def test_removing_takes_the_run_and_nothing_else(tmp_path):
    run, other = make_run(tmp_path, "run"), make_run(tmp_path, "other")
    assert removable_bytes(run) > 100
    remove_run(run)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    pin_run(other)
    with pytest.raises(ConfigError, match="pinned"):
        removable_bytes(other)
    unpin(tmp_path)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="did not write: notes"):
        removable_bytes(other)
    link = make_run(tmp_path, "linked")
    (link / "report.html").symlink_to(other / "notes.txt")
    with pytest.raises(ConfigError, match="did not write"):
        removable_bytes(link)
    with pytest.raises(ConfigError, match="no run here"):
        removable_bytes(tmp_path)


class _Stops(disk.Disk):
    """The power goes with the first file that is removed."""

    def unlink(self, path: Path) -> None:
        raise KeyboardInterrupt


def test_a_removal_cut_short_leaves_no_half_run(tmp_path):
    run = make_run(tmp_path, "run")
    with disk.using(_Stops()), pytest.raises(KeyboardInterrupt):
        remove_run(run)
    assert not run.exists() and list_runs(tmp_path) == []
    (left,) = tmp_path.glob(".run.*.removed")
    left.rename(tmp_path / ".run.4194305.removed")  # of a process that is gone
    remove_run(make_run(tmp_path, "next"))
    assert list(tmp_path.iterdir()) == []
