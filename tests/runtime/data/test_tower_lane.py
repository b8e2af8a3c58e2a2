"""A whole tower at work while the next pictures are decoded: the same samples, and no less safe."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, noise
from tiny_tower import TinyBundle

from edgeladder.core.errors import DataError, IntegrityError
from edgeladder.runtime.towers import picture_run
from edgeladder.runtime.towers.runner import TowerRunner
from edgeladder.runtime.towers.tower_lane import TowerLane
from tests.runtime.data.test_precompute import FILES, SIZES, WHOLE, Make, fill

_PATIENCE = 30.0  # seconds until a test gives up


@pytest.fixture
def slow_tower(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """What happens before each group passes the image tower."""

    def install(before: Callable[[], None]) -> None:
        real = TowerRunner.run

        def run(self: TowerRunner, *arguments: object) -> None:
            if self._side == "image":
                before()
            real(self, *arguments)

        monkeypatch.setattr(TowerRunner, "run", run)

    return install


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[threading.Event]:
    """Set one after the other, as pictures are decoded."""
    events = [threading.Event() for _ in FILES]
    real, count = picture_run.view_square, 0

    def view_square(*arguments: object, **options: object) -> np.ndarray:
        nonlocal count
        events[count].set()
        count += 1
        return real(*arguments, **options)

    monkeypatch.setattr(picture_run, "view_square", view_square)
    return events


def test_the_next_group_is_decoded_while_the_tower_works(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path, slow_tower, decodings
) -> None:
    """The first group of five waits in the tower until the tenth picture is decoded."""
    seen: list[bool] = []
    slow_tower(lambda: seen.append(decodings[9].wait(_PATIENCE)))
    assert fill(tiny, make_folder(FILES), tmp_path / "cache", sizes=WHOLE).new == 27
    assert all(seen) and len(seen) == 6


def test_segment_by_segment_nothing_is_decoded_beside_it(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path, slow_tower, decodings
) -> None:
    """The plan counts one or the other there."""
    decoded: list[int] = []
    slow_tower(lambda: decoded.append(sum(event.is_set() for event in decodings)))
    fill(tiny, make_folder(FILES), tmp_path / "cache", sizes=SIZES)
    assert decoded == [5, 10, 15, 20, 25, 27]


def test_a_picture_that_is_in_the_tower_is_not_decoded_again(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path, slow_tower, decodings
) -> None:
    same = encode(noise(40, 40), "PNG")
    files = {**FILES, "train/hat/1.png": same, "train/shirt/2.png": same}
    slow_tower(lambda: None)
    result = fill(tiny, make_folder(files), tmp_path / "cache", sizes=WHOLE)
    assert (result.new, result.reused) == (26, 1)
    assert sum(event.is_set() for event in decodings) == 26


def test_what_goes_wrong_in_the_tower_is_raised_where_it_is_waited_for(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path, slow_tower
) -> None:
    calls = []

    def second_fails() -> None:
        calls.append(threading.current_thread())
        if len(calls) == 2:
            raise IntegrityError("a segment cannot be loaded")

    slow_tower(second_fails)
    with pytest.raises(IntegrityError, match="cannot be loaded"):
        fill(tiny, make_folder(FILES), tmp_path / "cache", sizes=WHOLE)
    assert threading.main_thread() not in calls
    assert not any(thread.name == "tower" for thread in threading.enumerate())
    again = fill(tiny, make_folder(FILES), tmp_path / "cache")
    assert again.reused == 5 and again.new == 22  # the group before it is kept


def test_an_order_to_leave_ends_the_tower_too(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """It comes while pictures are decoded, or while the tower is waited for."""
    files = {**FILES, **{f"train/hat/{i}.png": b"no picture" for i in range(6)}}
    with pytest.raises(DataError, match="cannot be read"):
        fill(tiny, make_folder(files), tmp_path / "cache", sizes=WHOLE)
    assert not any(thread.name == "tower" for thread in threading.enumerate())

    def told(done: int, total: int, note: str) -> None:
        if total == len(FILES) and 0 < done < total:  # whoever of the two tells it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tiny, make_folder(FILES), tmp_path / "cache", sizes=WHOLE, progress=told)
    assert not any(thread.name == "tower" for thread in threading.enumerate())
    assert fill(tiny, make_folder(FILES), tmp_path / "cache").new <= 27


def test_work_that_nobody_waits_for_ends_at_its_next_look() -> None:
    lane, begun, looks = TowerLane(), threading.Event(), []

    def work() -> None:
        while True:
            looks.append(1)
            begun.set()
            lane.go_on()

    lane.start(work)
    assert begun.wait(_PATIENCE)
    lane.stop()
    count = len(looks)
    lane.start(lambda: None)  # and the lane is free again
    lane.wait(lambda: None)
    assert len(looks) == count
