"""Free space is looked at before any work starts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeladder.cli.train_commands import _planned
from edgeladder.core.bundle import Bundle
from edgeladder.core.config import Profile
from edgeladder.core.errors import ConfigError, StorageError
from edgeladder.core.plan import DiskSpace, Plan
from edgeladder.core.request import TrainRequest
from edgeladder.core.shipped import NANO_BUNDLE
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.towers.fill_cache import Wanted, precompute
from tests.conftest import make_pictures
from tests.jobs.here import prepared

MB = 1_000_000


@pytest.fixture
def asked(tmp_path: Path) -> TrainRequest:
    pictures = make_pictures(tmp_path / "data", classes=2, count=4)
    return TrainRequest(  # a large budget: it is planned in this process, which holds other tests
        bundle=str(NANO_BUNDLE), data=str(pictures), cache=str(tmp_path / "disk" / "cache"),
        run=str(tmp_path / "run"), budget_bytes=4_000 * MB, views=3,
    )  # fmt: skip


def free(monkeypatch: pytest.MonkeyPatch, bytes_free: int) -> None:
    told = SimpleNamespace(f_bavail=bytes_free, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: told)


def test_a_full_disk_is_refused_before_anything_is_written(asked, tmp_path, monkeypatch):
    space = prepared(asked).plan.space
    assert space.folder == str(tmp_path) and space.free_bytes > 0 and not space.missing_bytes
    short = space.cache_bytes + space.work_bytes - 1000
    free(monkeypatch, short)
    with pytest.raises(StorageError, match="the cache needs .* are free") as caught:
        prepared(replace(asked, run=str(tmp_path / "other")))
    assert caught.value.exit_code == 7 and caught.value.where == str(tmp_path)
    assert "free 1 kB (`edgeladder cache prune`" in caught.value.remedy
    assert not (tmp_path / "other").exists() and not (tmp_path / "disk").exists()


def test_what_is_cached_needs_no_room(asked, monkeypatch):
    dataset = open_data(asked.data)
    planned = prepared(asked).plan.space
    precompute(
        Bundle.open(NANO_BUNDLE), dataset, asked.cache, Wanted(dataset.pictures, [], views=3)
    )
    free(monkeypatch, planned.work_bytes)
    space = prepared(replace(asked, run=None)).plan.space
    assert space.present_bytes == space.cache_bytes == planned.cache_bytes
    # the bound is what was written, and not much more: views of test pictures are not wanted
    stores = sum(path.stat().st_size for path in Path(asked.cache).rglob("[0-9]*.safetensors"))
    assert 0.7 * stores < planned.cache_bytes <= stores


def test_a_profile_that_says_nothing_of_the_ladder_takes_the_bundles(asked):
    exported = Bundle.open(NANO_BUNDLE).manifest.profile
    found = prepared(replace(asked, run=None, profile="views", views=None))
    assert found.profile.ladder == exported.ladder != Profile(name="x").ladder
    assert found.request.views == found.profile.train.views > 0
    assert prepared(replace(asked, run=None, profile="fast")).steps == 0
    with pytest.raises(ConfigError, match="differ from the exported ladder's"):
        prepared(replace(asked, run=None, profile="default"))


def test_plan_says_what_the_disk_lacks(asked):
    decided = prepared(asked).plan
    assert Plan.from_json(decided.to_json()) == decided
    assert "the cache takes" in _planned(decided)
    lacking = DiskSpace("/data", 9 * MB, 2 * MB, MB, 3 * MB)
    assert lacking.missing_bytes == 5 * MB
    assert "5 MB are missing in /data" in _planned(replace(decided, space=lacking))
