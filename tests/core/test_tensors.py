"""The safetensors codec: the library agrees, cut and stuffed files are refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file, save_file

from edgeladder.core.errors import IntegrityError
from edgeladder.core.tensors import TensorFile, is_intact, read_header, read_values, write_tensors

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


def test_a_part_shows_only_its_names(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": np.arange(4), "b": np.ones((2, 3), np.float32).T})
    part = TensorFile(path).part(["b"])
    assert list(part) == ["b"] and "a" not in part and part["b"].shape == (3, 2)
    with pytest.raises(KeyError):
        part["a"]


def test_any_flipped_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    """The length, the header, the checksum itself, the padding, the data: all of it counts."""
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": np.arange(4), "b": np.ones(3, np.float32)}, {"loop": '{"step": 200}'})
    assert is_intact(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            assert not is_intact(path), (place, bit)
    assert not is_intact(tmp_path / "none")


def test_a_checksum_that_is_handed_on_is_not_taken_for_this_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "one", {"a": np.arange(4)}, {"note": "x"})
    write_tensors(tmp_path / "two", {"a": np.arange(5)}, TensorFile(tmp_path / "one").metadata)
    assert is_intact(tmp_path / "two") and TensorFile(tmp_path / "two").metadata["note"] == "x"


def test_a_file_without_our_checksum_is_not_called_intact(tmp_path: Path) -> None:
    save_file({"a": np.ones(4, np.float32)}, str(tmp_path / "x"), {"crc32": "12"})
    assert not is_intact(tmp_path / "x") and list(TensorFile(tmp_path / "x")) == ["a"]


def test_what_is_missing_is_refused_with_the_callers_remedy(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        TensorFile(tmp_path / "none.safetensors", remedy="copy it again")
    assert caught.value.remedy == "copy it again"


def test_reading_by_pieces_is_the_librarys_reading(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = {
        "a": rng.normal(size=(3, 4)).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float64),
        "n": np.arange(5),
    }
    path = tmp_path / "x.safetensors"
    save_file(values, str(path))
    header = read_header(path).entries
    assert set(header) == set(values)
    for name, expected in load_file(path).items():
        found = read_values(path, header[name]).reshape(header[name].shape)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b'{"__metadata__":3}',
        b'{"a":5}',
        b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}',
        b'{"a":' * 5000,
    ],
)
def test_nonsense_in_a_header_is_one_kind_of_error(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="safetensors|readable|nothing|Expecting"):
        read_header(path)


@pytest.mark.parametrize("damage", ["hidden", "overlap", "short", "text"])
def test_files_with_bytes_of_no_tensor_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}, str(path))
    data = path.read_bytes()
    broken = {
        "hidden": data + b"picture",
        "overlap": data.replace(b"[16,32]", b"[0,16] "),
        "short": data[:-4],
        "text": b"just some text, long enough",
    }[damage]
    assert broken != data
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="no tensor|safetensors"):
        read_header(path)
