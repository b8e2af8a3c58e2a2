"""Checkpoints are safetensors files anyone can read, whole or absent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file

from edgeladder.core.errors import IntegrityError, StorageError
from edgeladder.jobs.checkpoint import Checkpoints, TensorFile, write_tensors

ARRAYS = npst.arrays(
    st.sampled_from(["float32", "float16", "int8", "uint8", "int64", "bool"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("abc/.", min_size=1, max_size=6), ARRAYS, max_size=5))
def test_round_trip_and_the_reference_reader_agrees(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    write_tensors(path, tensors, {"note": "ä"})
    ours, reference = TensorFile(path), load_file(path)
    assert set(ours) == set(tensors) == set(reference)
    assert ours.intact() and ours.metadata["note"] == "ä"
    for name, array in tensors.items():
        assert ours[name].dtype == array.dtype and ours[name].shape == array.shape
        assert ours[name].tobytes() == array.tobytes() == reference[name].tobytes()


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": np.arange(1000.0)}, {})
    whole = path.read_bytes()
    for length in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError, match="not a whole safetensors file"):
            TensorFile(path)


def test_a_full_disk_keeps_the_older_generations(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.full(1000, step)}, {})

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeladder.jobs.checkpoint.os.write", full)
    with pytest.raises(StorageError, match="no space left"):
        checkpoints.save(3, {"a": np.full(1000, 3)}, {})
    tensors, loop = checkpoints.latest()
    assert loop["step"] == 2 and tensors["a"][0] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent").latest() is None
