"""Batches side by side: in order, the same as one after the other, errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgeladder
from edgeladder.budget import policy
from edgeladder.core.bundle import Bundle
from edgeladder.runtime.towers.lanes import Lanes
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes

NANO = Path(edgeladder.__file__).parent / "_nano" / "bundle"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_and_no_more_is_begun_than_is_counted(count: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for item in range(12):
            begun.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.01 * (item % 3 == 0))  # the first of three is the last to be done
        return 10 * item

    lanes, found = Lanes(count), []
    for number, result in enumerate(lanes.map(work, items())):
        found.append(result)
        assert len(begun) - number <= count + 1, "memory is planned for the lanes and one in wait"
    lanes.close()
    assert found == [10 * item for item in range(12)]


def test_work_is_done_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)
    lanes = Lanes(2)
    assert len(list(lanes.map(lambda item: both.wait(), range(2)))) == 2, "each waits for the other"
    lanes.close()


def test_an_error_is_raised_in_its_place_and_waits_for_what_was_begun() -> None:
    ended: list[int] = []

    def work(item: int) -> int:
        if item == 1:
            raise ValueError("the second")
        time.sleep(0.05)
        ended.append(item)
        return item

    lanes = Lanes(2)
    results = lanes.map(work, range(9))
    assert next(results) == 0
    with pytest.raises(ValueError, match="the second"):
        next(results)
    assert all(item in (0, 2) for item in ended)
    count = len(ended)
    time.sleep(0.1)
    assert len(ended) == count, "nothing runs on in sessions that are about to be closed"
    assert list(lanes.map(lambda item: item, range(3))) == [0, 1, 2], "the lanes are free again"
    lanes.close()


def test_lanes_are_as_many_as_batch_and_threads_allow() -> None:
    assert [policy.lanes(batch, 2) for batch in (8, 4, 2, 1)] == [2, 2, 1, 1]
    assert policy.lanes(8, 1) == 1 and policy.lanes(8, 16) == 4
    shared = TowerSizes(batch=8, threads=6, lanes=policy.lanes(8, 6))
    assert (shared.lanes, shared.rows, shared.pool) == (4, 2, 3), "two helpers of all four"


@pytest.mark.parametrize("whole", [True, False])
def test_a_tower_gives_the_same_in_lanes(tmp_path: Path, whole: bool) -> None:
    """Last batches of every length among them."""
    bundle = Bundle.open(NANO)
    side = bundle.manifest.preprocess.size
    pixels = np.random.default_rng(4).standard_normal((11, 3, side, side)).astype(np.float32)

    def passed(lanes: int) -> dict[str, np.ndarray]:
        sizes = TowerSizes(group=7, batch=4, threads=lanes, lanes=lanes, whole=whole)
        runner = TowerRunner(bundle, "image", sizes, tmp_path)
        found: dict[str, list[np.ndarray]] = {}
        starts, done = [], []

        def sink(start: int, outputs: dict[str, np.ndarray]) -> None:
            starts.append(start)
            for name, values in outputs.items():
                found.setdefault(name, []).append(values.copy())

        runner.run(ArraySamples(pixels), sink, done.append)
        runner.close()
        assert starts == sorted(starts) and sum(done) == pytest.approx(11)
        return {name: np.concatenate(values) for name, values in found.items()}

    alone, beside = passed(1), passed(2)
    assert alone.keys() == beside.keys()
    for name, values in alone.items():
        assert len(values) == 11
        np.testing.assert_array_equal(beside[name], values, err_msg=name)
