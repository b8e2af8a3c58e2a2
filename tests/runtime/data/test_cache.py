"""The activation cache: what goes in comes out, nothing is lost, nothing is half there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny_tower import DIM, PRE, TOKENS, WIDTH, TinyBundle

from edgeladder.core import locks
from edgeladder.core.errors import ConfigError, IntegrityError, StorageError
from edgeladder.runtime.cache.layout import Layout, from_int8, to_int8
from edgeladder.runtime.cache.selection import stack_keys
from edgeladder.runtime.cache.shards import HEADER_BYTES
from edgeladder.runtime.cache.store import INDEX, ActivationCache, sample_key
from edgeladder.runtime.cache.working_folder import working_folder


def key(number: int) -> bytes:
    """A sample's key."""
    return sample_key(number.to_bytes(8, "little"))


def outputs(numbers: list[int]) -> dict[str, np.ndarray]:
    """What a tower gives for these samples: fixed by the number."""
    made: dict[str, list[np.ndarray]] = {}
    for number in numbers:
        source = np.random.default_rng(number)
        for name, shape in {
            "tap_0": (TOKENS, WIDTH),
            "tap_1": (TOKENS, WIDTH),
            "embedding": (DIM,),
            "embedding_pre": (PRE,),
        }.items():
            made.setdefault(name, []).append(source.normal(size=shape).astype(np.float32))
    return {name: np.stack(arrays) for name, arrays in made.items()}


def open_cache(folder: Path, bundle: TinyBundle, **options: object) -> ActivationCache:
    """The image store."""
    return ActivationCache.open(folder, bundle, "image", **options)


def fill(folder: Path, bundle: TinyBundle, numbers: list[int], **options: object) -> None:
    """Put samples and close the store."""
    cache = open_cache(folder, bundle, writable=True, **options)
    cache.put([key(n) for n in numbers], outputs(numbers))
    cache.close()


def check(cache: ActivationCache, bundle: TinyBundle, numbers: list[int]) -> None:
    """These samples are there and are what was put."""
    places = cache.find(stack_keys([key(number) for number in numbers]))
    assert (places >= 0).all()
    expected = outputs(numbers)
    group = bundle.manifest.ladder.groups[0]
    taps = np.stack([expected["tap_0"], expected["tap_1"]]).transpose(0, 2, 1, 3)
    found = cache.taps(places, group)
    assert found.flags.c_contiguous and found.dtype == np.float32
    np.testing.assert_array_equal(found, taps.astype(np.float16).astype(np.float32))
    lengths = np.linalg.norm(expected["embedding"], axis=1, keepdims=True)
    np.testing.assert_allclose(cache.embeddings(places), expected["embedding"] / lengths, rtol=1e-6)
    # scaled with the embedding, so that projecting it gives the normalised one
    pre = expected["embedding_pre"] / lengths
    np.testing.assert_allclose(cache.pre_embeddings(places), pre, rtol=1e-6)


def shards(folder: Path) -> list[Path]:
    """All shards below a cache folder."""
    return sorted(path for path in folder.rglob("0*.safetensors"))


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=9), max_size=8),
    room=st.integers(1, 12),
    reopen=st.booleans(),
)
def test_round_trip(tiny: TinyBundle, blocks: list[list[int]], room: int, reopen: bool) -> None:
    """Whatever is put, in whatever blocks and shard sizes, twice or not: found, equal, once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = room * Layout(tiny, "image", "fp16").sample_bytes
        cache = open_cache(folder, tiny, writable=True, shard_bytes=size)
        for block in blocks:
            cache.put([key(number) for number in block], outputs(block))
            if reopen:
                cache.close()
                cache = open_cache(folder, tiny, writable=True, shard_bytes=size)
        cache.close()
        cache = open_cache(folder, tiny)
        numbers = sorted({number for block in blocks for number in block})
        assert len(cache) == len(numbers)
        if numbers:
            check(cache, tiny, numbers)
            check(cache, tiny, random.Random(0).sample(numbers * 2, len(numbers)))
        absent = cache.find(stack_keys([key(1000), key(1001)]))
        assert absent.tolist() == [-1, -1] and key(1000) not in cache
        cache.close()
        for path in shards(folder):
            assert path.stat().st_size <= HEADER_BYTES + size
            assert len(load_file(path)["keys"]) <= room  # a plain safetensors file


def test_a_lost_or_stale_index_is_made_again(tiny: TinyBundle, tmp_path: Path) -> None:
    """The shards carry their own keys; the index only saves reading them."""
    fill(tmp_path, tiny, list(range(6)), shard_bytes=1)
    index = next(tmp_path.rglob(INDEX))
    whole = index.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"nonsense" * 20):
        index.write_bytes(content)
        check(open_cache(tmp_path, tiny), tiny, list(range(6)))
    index.write_bytes(whole)
    cache = open_cache(tmp_path, tiny, writable=True)
    cache.put([key(7)], outputs([7]))
    cache.flush()
    os.unlink(shards(tmp_path)[2])  # a shard lost behind the index's back
    again = open_cache(tmp_path, tiny)
    check(again, tiny, [0, 1, 3, 4, 5, 7])
    assert len(again) == 6
    cache.close()


def test_a_shard_cut_short_is_dropped_and_said(tiny: TinyBundle, tmp_path: Path) -> None:
    """A reader that meets it says so; a writer removes it, and its samples are computed again."""
    cache = open_cache(tmp_path, tiny, writable=True)
    cache.put([key(1), key(2)], outputs([1, 2]))
    cache.close()
    reader = open_cache(tmp_path, tiny)
    places = reader.find(stack_keys([key(1), key(2)]))
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[: HEADER_BYTES + 20])
    with pytest.raises(IntegrityError, match="missing or cut short") as caught:
        reader.embeddings(places)
    assert "precompute" in str(caught.value.remedy)
    cache = open_cache(tmp_path, tiny, writable=True)
    assert len(cache) == 0 and not shards(tmp_path)
    cache.close()


@pytest.mark.parametrize("place", ["header", "keys", "last"])
def test_a_flipped_bit_is_found_said_and_healed(
    tiny: TinyBundle, tmp_path: Path, place: str
) -> None:
    """The size is right, one bit is not: no sample of that shard is believed."""
    cache = open_cache(tmp_path, tiny, writable=True)
    cache.put([key(1), key(2)], outputs([1, 2]))
    cache.close()
    (shard,) = shards(tmp_path)
    content = bytearray(shard.read_bytes())
    content[{"header": 60, "keys": HEADER_BYTES + 3, "last": -1}[place]] ^= 4
    shard.write_bytes(content)

    def read() -> None:
        reader = open_cache(tmp_path, tiny)
        places = reader.find(stack_keys([key(1), key(2)]))
        reader.taps(places, tiny.manifest.ladder.groups[0])

    with pytest.raises(IntegrityError, match="damaged") as caught:
        read()
    assert str(shard) in str(caught.value.where) and "precompute" in str(caught.value.remedy)
    assert [path.name for path in shard.parent.glob("*.damaged")] == [f"{shard.name}.damaged"]
    cache = open_cache(tmp_path, tiny, writable=True)
    assert len(cache) == 0
    cache.put([key(1), key(2)], outputs([1, 2]))
    cache.close()
    check(open_cache(tmp_path, tiny), tiny, [1, 2])


def test_a_flipped_bit_of_the_index_gives_nobody_anothers_activations(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    """Wherever the bit is, the samples found are the ones that were put, or none."""
    numbers = list(range(12))
    fill(tmp_path, tiny, numbers, shard_bytes=4096)
    index = next(tmp_path.rglob(INDEX))
    whole, source = index.read_bytes(), random.Random(7)
    for _ in range(150):
        content = bytearray(whole)
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
        index.write_bytes(content)
        check(open_cache(tmp_path, tiny), tiny, numbers)


@pytest.mark.parametrize("writable", [False, True])
def test_an_index_of_other_shards_is_not_believed(
    tiny: TinyBundle, tmp_path: Path, writable: bool
) -> None:
    """Whole and of the right size, but of another day's copy: it would shuffle the samples."""
    for name, numbers in (("a", [1, 2, 3]), ("b", [3, 1, 2])):
        fill(tmp_path / name, tiny, numbers)
    (source,), (target,) = (list((tmp_path / name).rglob(INDEX)) for name in "ab")
    target.write_bytes(source.read_bytes())
    cache = open_cache(tmp_path / "b", tiny, writable=writable)
    assert all(key(n) in cache for n in (1, 2, 3)) and key(4) not in cache
    check(cache, tiny, [1, 2, 3])
    assert len(cache) == 3


def test_damage_while_a_reader_reads_is_seen_in_the_bytes_it_reads(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    """Every field of every sample, at every read; and all damaged shards are found at once."""
    numbers = list(range(8))
    fill(tmp_path, tiny, numbers, shard_bytes=1)
    reader, whole = open_cache(tmp_path, tiny), [path.read_bytes() for path in shards(tmp_path)]
    places = reader.find(stack_keys([key(n) for n in numbers]))
    group, paths = tiny.manifest.ladder.groups[0], shards(tmp_path)
    check(reader, tiny, numbers)  # everything was read and right once
    source = random.Random(3)
    for damaged in ([2], [1, 4, 6]):
        for number in damaged:
            start = len(whole[number]) - 2 * TOKENS * WIDTH * 2 - 4 * 4  # of the taps
            content = bytearray(whole[number])
            content[source.randrange(start, len(content) - 16)] ^= 1 << source.randrange(8)
            with open(paths[number], "r+b") as stream:  # in place, as a failing block would
                stream.write(content)
        with pytest.raises(IntegrityError, match="damaged") as caught:
            reader.taps(places, group)
        for number in damaged:
            assert str(paths[number]) in str(caught.value.where)
            paths[number].unlink(missing_ok=True)
        aside = sorted(path.name for path in paths[0].parent.glob("*.damaged"))
        assert aside == [f"{paths[number].name}.damaged" for number in damaged]
        for number in damaged:
            Path(f"{paths[number]}.damaged").unlink()
            paths[number].write_bytes(whole[number])
        reader.close()
        check(reader, tiny, numbers)


def test_another_backbone_or_dtype_has_its_own_store(tiny: TinyBundle, tmp_path: Path) -> None:
    """Samples of one tower are never taken for another's."""
    cache = open_cache(tmp_path, tiny, writable=True)
    cache.put([key(1)], outputs([1]))
    cache.close()
    other = TinyBundle(tmp_path / "other", seed=1)
    assert len(open_cache(tmp_path, other)) == 0
    assert len(open_cache(tmp_path, tiny, dtype="int8")) == 0
    assert len(open_cache(tmp_path, tiny)) == 1


def test_one_writer_at_a_time(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one is told; readers are welcome; a closed one makes way."""
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    first = open_cache(tmp_path, tiny, writable=True)
    with pytest.raises(ConfigError, match="another process is writing"):
        open_cache(tmp_path, tiny, writable=True)
    assert len(open_cache(tmp_path, tiny)) == 0
    first.close()
    open_cache(tmp_path, tiny, writable=True).close()


def test_a_writer_that_is_about_to_end_is_waited_for(tiny: TinyBundle, tmp_path: Path) -> None:
    first, told = open_cache(tmp_path, tiny, writable=True), []
    threading.Timer(0.2, first.close).start()
    open_cache(tmp_path, tiny, writable=True, tell=told.append).close()
    assert len(told) == 1 and "waiting" in told[0] and str(tmp_path) in told[0]


def test_int8_is_close(tiny: TinyBundle, tmp_path: Path) -> None:
    """Within a few per mille of a token's spread, whole or some of the taps; a third the bytes."""
    fill(tmp_path, tiny, list(range(5)), dtype="int8")
    cache = open_cache(tmp_path, tiny, dtype="int8")
    places = cache.find(stack_keys([key(n) for n in (3, 1)]))
    group = tiny.manifest.ladder.groups[0]
    expected = outputs([3, 1])
    taps = np.stack([expected["tap_0"], expected["tap_1"]]).transpose(0, 2, 1, 3)
    assert np.abs(cache.taps(places, group) - taps).max() < 0.03
    second = type(group)(**{**vars(group), "taps": [1]})
    np.testing.assert_array_equal(cache.taps(places, second), cache.taps(places, group)[1:])


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40))
def test_int8_companding(values: list[float]) -> None:
    """The error is bounded by the step at each value: 2 sqrt(|x| max) / 127, halved, or less."""
    row = np.array([values], np.float32)
    quantized, scales = to_int8(row)
    found = from_int8(quantized, scales)
    largest = np.abs(row).max()
    bound = np.sqrt(np.abs(row) * largest) / 127 + largest / 127**2
    assert (np.abs(found - row) <= bound * 1.001 + 1e-6).all()


def test_int8_spends_its_steps_where_the_values_are() -> None:
    """With one channel far out, as CLIP's tokens have: half the error of linear steps."""
    row = np.random.default_rng(0).normal(size=(8, 768)).astype(np.float32)
    row[:, 5] = 20
    found = from_int8(*to_int8(row))
    linear = np.rint(row / 20 * 127) * 20 / 127
    assert np.std(found - row) < 0.5 * np.std(linear - row)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cache import key, open_cache, outputs
from tiny_tower import TinyBundle
bundle = TinyBundle(Path(sys.argv[2]))
cache = open_cache(Path(sys.argv[3]), bundle, writable=True, shard_bytes=2000)
print("ready", flush=True)
for number in range(100_000):
    if key(number) not in cache:
        cache.put([key(number)], outputs([number]))
        if cache.flushed_count > getattr(cache, "_told", 0):
            cache._told = cache.flushed_count
            print(cache.flushed_count, flush=True)
"""


def test_killed_at_any_moment(tiny: TinyBundle, tmp_path: Path) -> None:
    """kill -9 at random moments: all that was flushed is there and right, and work goes on."""
    here = str(Path(__file__).parent)
    random_source = random.Random(1)
    flushed = 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, here, str(tmp_path / "b"), str(tmp_path / "cache")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(random_source.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
            told = [int(line) for line in process.stdout.read().split()]
        flushed = max([flushed, *told])
        cache = open_cache(tmp_path / "cache", tiny, writable=True)
        assert len(cache) >= flushed
        if len(cache):  # a busy machine may have flushed nothing yet
            check(cache, tiny, list(range(len(cache))))
        assert not list((tmp_path / "cache").rglob("*.tmp"))
        cache.close()
    assert flushed > 0


def test_hidden_states_of_the_dead_are_removed(tmp_path: Path) -> None:
    """A killed precompute leaves its working folder; the next one takes it away."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f"work-{process.pid}"
    left.mkdir()
    (left / "0000.spill").write_bytes(b"x")
    (tmp_path / "work-0").mkdir()  # no process has this number: a folder of somebody's work
    (tmp_path / "work-0" / "draft.txt").write_text("words")
    mine = working_folder(tmp_path)
    assert mine.is_dir() and not left.exists()
    assert (tmp_path / "work-0" / "draft.txt").read_text() == "words"


FULL = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cache import key, open_cache, outputs
from tiny_tower import TinyBundle
from edgeladder.core.errors import StorageError
bundle = TinyBundle(Path(sys.argv[2]))
folder = Path(sys.argv[3])
cache = open_cache(folder, bundle, writable=True, shard_bytes=60_000)
try:
    with cache.writing():
        for number in range(5000):
            cache.put([key(number)], outputs([number]))
except StorageError as error:
    assert error.exit_code == 7 and error.remedy and str(folder) in error.where, error
    print(error.message)
    sys.exit(7)
"""


def fill_up(tmp_path: Path, bundle: TinyBundle, folder: Path) -> str:
    """Write until the disk is full; the error's message."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", FULL, here, str(tmp_path / "b"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    return done.stdout.strip()


def test_a_full_disk_loses_nothing(tiny: TinyBundle, tmp_path: Path) -> None:
    """On a real file system of one megabyte: one clear error, every flushed sample still right."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
        ).returncode
        == 0
    )
    try:
        if mounted:
            assert fill_up(tmp_path, tiny, folder) == "no space left on the device"
            cache = open_cache(folder, tiny)
            assert len(cache) > 500  # most of the megabyte
            check(cache, tiny, list(range(len(cache))))
            assert not list(folder.rglob("*.tmp"))
            cache.close()
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_write_that_fails_loses_nothing(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no file system can be mounted: the system says ENOSPC at the third shard."""
    import errno

    from edgeladder.runtime.cache import shards as module

    written = 0
    real = module.shard_header

    def header(*arguments: object) -> bytes:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    cache = open_cache(tmp_path, tiny, writable=True, shard_bytes=1)
    monkeypatch.setattr(module, "shard_header", header)
    with pytest.raises(StorageError, match="no space left") as caught, cache.writing():
        cache.put([key(n) for n in range(5)], outputs(list(range(5))))
    assert "already written is kept" in str(caught.value.remedy)
    monkeypatch.setattr(module, "shard_header", real)
    again = open_cache(tmp_path, tiny)
    assert len(again) == 2
    check(again, tiny, [0, 1])
