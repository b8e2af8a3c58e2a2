"""Two generations of checkpoints, whole or absent."""

import numpy as np
import pytest

from edgeladder.core.errors import StorageError
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
    tensors, loop = checkpoints.latest()
    assert loop["step"] == 2 and tensors["a"][0] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent").latest() is None
