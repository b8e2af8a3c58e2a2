"""`edgeladder cache`: only what can be computed again goes, and nothing that a job uses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeladder.cli.app import main
from edgeladder.core.bundle import Bundle
from edgeladder.core.cache_use import share_cache
from edgeladder.core.shipped import NANO_BUNDLE
from edgeladder.runtime.cache.layout import Layout
from edgeladder.runtime.cache.store import ActivationCache
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.towers.fill_cache import Wanted, precompute
from tests.conftest import make_pictures


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` (two classes of three pictures) and `cache`, one view of each cached."""
    place = tmp_path_factory.mktemp("place")
    dataset = open_data(make_pictures(place / "data", classes=2, count=3))
    precompute(
        Bundle.open(NANO_BUNDLE), dataset, place / "cache", Wanted(dataset.pictures, [], views=1)
    )
    return place


@pytest.fixture
def place(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(filled, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def asked(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict:
    assert main(["cache", *words, "--json"]) == code
    return json.loads(capfd.readouterr().out)


def image_store(place: Path) -> Path:
    return place / "cache" / Layout(Bundle.open(NANO_BUNDLE), "image", "fp16").name


def count(place: Path) -> int:
    store = ActivationCache.open(place / "cache", Bundle.open(NANO_BUNDLE), "image")
    found = len(store)
    store.close()
    return found


def test_the_list_says_how_large_each_store_is(place, capfd):
    told = asked(capfd)
    assert {item["name"].split("-")[0] for item in told["stores"]} == {"image", "text"}
    assert told["bytes"] == sum(
        path.stat().st_size for path in (place / "cache").glob("*-*/*") if path.is_file()
    )
    assert main(["cache"]) == 0
    assert "can be computed again" in capfd.readouterr().out


def test_nothing_goes_while_everything_is_wanted(place, capfd):
    before = asked(capfd)["bytes"]
    told = asked(capfd, "prune", "--bundle", "nano")
    assert told["removed"] == [] and told["bytes"] == before and count(place) == 12


def test_pictures_that_are_gone_and_old_views_go(place, capfd):
    before = image_store(place) / "00000000.safetensors"
    assert before.is_file()
    next((place / "data" / "class0").iterdir()).unlink()
    would = asked(capfd, "prune", "--dry-run")
    assert would["dry_run"] and would["removed"][0]["samples"] == 2 and count(place) == 12
    told = asked(capfd, "prune")
    assert told["removed"][0]["reason"] == "of no picture or view that is wanted"
    assert (
        told["freed_bytes"] == pytest.approx(would["freed_bytes"], rel=0.2) and count(place) == 10
    )
    assert not before.exists()
    asked(capfd, "prune", "--views", "0")
    assert count(place) == 5
    # what stays is what was computed: nothing is computed again
    dataset = open_data(place / "data")
    again = precompute(
        Bundle.open(NANO_BUNDLE), dataset, place / "cache", Wanted(dataset.pictures, [])
    )
    assert again.new == 0 and again.reused == 5
    store = ActivationCache.open(place / "cache", Bundle.open(NANO_BUNDLE), "image")
    rows = store.embeddings(store.find(again.selection.train_keys[0]))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    store.close()


def test_another_bundles_store_and_what_was_left_behind_go(place, capfd):
    other = place / "cache" / "image-0123456789abcdef-fp16"
    other.mkdir()
    (other / "00000000.safetensors").write_bytes(b"x" * 1000)
    (other / "notes.txt").write_text("mine")
    dead = place / "cache" / "work-999999999"
    dead.mkdir()
    (dead / "pixels.spill").write_bytes(b"y" * 500)
    (image_store(place) / "00000007.safetensors.damaged").write_bytes(b"z" * 50)
    told = asked(capfd, "prune", "--bundle", "nano")
    assert {item["reason"] for item in told["removed"]} == {"left behind", "of another bundle"}
    assert not dead.exists() and (other / "notes.txt").is_file() and count(place) == 12
    assert told["freed_bytes"] == 1550


def test_an_accelerators_store_stays_without_a_limit(place, capfd):
    other = place / "cache" / "image-0123456789abcdef-fp16-cuda"
    other.mkdir()
    (other / "00000000.safetensors").write_bytes(b"x" * 1000)
    assert asked(capfd, "prune", "--bundle", "nano")["removed"] == []


def test_pictures_of_a_run_stay(place, capfd):
    shutil.move(place / "data", place / "elsewhere")
    (place / "data").mkdir()
    make_pictures(place / "data", classes=2, count=1, size=50)
    run = place / "runs" / "first"
    run.mkdir(parents=True)
    request = {"cache": "cache", "bundle": str(NANO_BUNDLE), "data": "elsewhere"}
    (run / "config.yaml").write_text(json.dumps({"request": request}))
    assert asked(capfd, "prune")["removed"] == [] and count(place) == 12
    (run / "config.yaml").unlink()
    asked(capfd, "prune")
    assert count(place) == 0


def test_a_limit_lets_the_oldest_go(place, capfd):
    total = asked(capfd)["bytes"]
    told = asked(capfd, "--limit", "1kB", "--dry-run")
    assert told["bytes"] == total and told["freed_bytes"] > total / 2
    told = asked(capfd, "--limit", "1kB")
    assert {item["reason"] for item in told["removed"]} == {"over the limit"}
    assert told["bytes"] < 1000 and count(place) == 0
    assert asked(capfd, "--limit", "10GB")["removed"] == []


def test_what_a_running_job_uses_is_not_touched(place, capfd, monkeypatch):
    monkeypatch.setattr("edgeladder.core.locks.WAIT_SECONDS", 0.1)
    held = share_cache(place / "cache")
    assert held is not None
    failure = asked(capfd, "--limit", "1kB", code=2)["error"]
    assert "a running job uses this cache" in failure["message"]
    assert share_cache(place / "cache") is not None  # others share it
    store = ActivationCache.open(place / "cache", Bundle.open(NANO_BUNDLE), "image")
    assert len(store) == 12
    store.close()


def test_no_cache_and_no_size_are_said_in_words(place, capfd):
    assert "no cache at nowhere" in asked(capfd, "--cache", "nowhere", code=2)["error"]["message"]
    assert "is not a size" in asked(capfd, "--limit", "much", code=2)["error"]["message"]
