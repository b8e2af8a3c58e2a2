"""Default places: which run is meant when none is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeladder.cli import options
from edgeladder.core.errors import ConfigError


def make_run(folder: Path, *, finished: bool, age: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    if finished:
        (folder / "adapter.json").touch()
    os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    return folder


def test_the_newest_finished_run_is_meant(tmp_path):
    make_run(tmp_path / "old", finished=True, age=30)
    wanted = make_run(tmp_path / "newer", finished=True, age=20)
    make_run(tmp_path / "unfinished", finished=False, age=10)
    assert options.newest_run(None, folder=tmp_path) == wanted


def test_an_unfinished_run_is_better_than_none(tmp_path):
    make_run(tmp_path / "old", finished=False, age=30)
    wanted = make_run(tmp_path / "newer", finished=False, age=20)
    assert options.newest_run(None, folder=tmp_path) == wanted


def test_a_named_run_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no run at"):
        options.newest_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no run below"):
        options.newest_run(None, folder=tmp_path)


def test_all_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        options.require(bundle=tmp_path / "b", pictures=tmp_path / "p")
    assert caught.value.message == f"no bundle at {tmp_path}/b and no pictures at {tmp_path}/p"
    options.require(bundle=tmp_path, pictures=tmp_path)


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("4GiB", 2**32), (None, None)])
def test_budgets(text, size):
    assert options.budget_bytes(text) == size
