"""Two generations of checkpoints, whole or absent."""

import random

import numpy as np
import pytest

from edgeladder.core.errors import IntegrityError, StorageError
from edgeladder.jobs.checkpoint import Checkpoints


def test_a_full_disk_keeps_the_older_generations(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.full(1000, step)}, {})

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeladder.core.tensors.os.write", full)
    with pytest.raises(StorageError, match="no space left"):
        checkpoints.save(3, {"a": np.full(1000, 3)}, {})
    found = checkpoints.latest()
    assert found.loop["step"] == 2 and found.tensors["a"][0] == 2 and not found.damaged
    assert len(list(tmp_path.iterdir())) == 2


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent").latest() is None


def _two_generations(folder):
    checkpoints = Checkpoints(folder)
    paths = [
        checkpoints.save(step, {"a": np.full(50, step)}, {"batches": {"epoch": step}, "loss": 0.5})
        for step in (100, 200)
    ]
    return checkpoints, paths


def test_a_flipped_bit_falls_back_to_the_generation_before(tmp_path):
    """Of header and data alike: never another step's number, never a KeyError."""
    checkpoints, (older, newer) = _two_generations(tmp_path)
    whole, source = newer.read_bytes(), random.Random(5)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(header), *(source.randrange(header, len(whole)) for _ in range(40))]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << source.randrange(8)
        newer.write_bytes(data)
        found = checkpoints.latest()
        assert found.loop["step"] == 100 and (found.tensors["a"] == 100).all(), place
        assert found.damaged == (newer.name,) and not newer.exists()
    newer.write_bytes(whole.replace(b'step\\": 200', b'step\\": 300'))
    assert newer.read_bytes() != whole and checkpoints.latest().loop["step"] == 100


def test_where_no_generation_is_whole_that_is_said(tmp_path):
    checkpoints, paths = _two_generations(tmp_path)
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"step", b"stop"))
    with pytest.raises(IntegrityError, match="no checkpoint of this run is whole") as caught:
        checkpoints.latest()
    assert caught.value.exit_code == 5 and "step 0" in caught.value.remedy
    assert all(path.exists() for path in paths)
