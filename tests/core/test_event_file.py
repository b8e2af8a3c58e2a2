"""Event files are what TensorBoard reads; by its own reader where it is installed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from edgeladder.core import event_file
from edgeladder.core.event_file import EventFile
from edgeladder.core.protobuf import parse
from edgeladder.jobs.run_directory import MetricsLog

LINES = [
    {"kind": "start", "plan": {}},
    {"kind": "step", "step": 1, "loss": 0.5, "gradient_norm": 2.0, "learning_rate": 1e-3},
    {"kind": "step", "step": 300, "loss": 0.25, "gradient_norm": None, "seconds": 0.1},
    {"kind": "phase", "phase": "train", "measured_peak_bytes": 150_000_000},
    {"kind": "result", "steps": 300, "accuracy": {"zero_shot": 0.25, "tuned": 0.75, "count": 4}},
]
EXPECTED = {
    ("train/loss", 1): 0.5,
    ("train/gradient_norm", 1): 2.0,
    ("train/learning_rate", 1): 1e-3,
    ("train/loss", 300): 0.25,
    ("train/seconds", 300): 0.1,
    ("memory/train peak MB", 0): 150.0,
    ("accuracy/zero_shot", 300): 0.25,
    ("accuracy/tuned", 300): 0.75,
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of a run, below TensorBoard's."""
    (tmp_path / "first").mkdir()
    log = MetricsLog(tmp_path / "first" / "metrics.jsonl", str(tmp_path / "board"))
    for line in LINES:
        log(line)
    log.close()
    return tmp_path / "board" / "first"


def frames(content: bytes) -> list[bytes]:
    found = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(content[12 : 12 + length])
        content = content[16 + length :]
    return found


def test_what_a_run_logs_becomes_scalars(written: Path) -> None:
    (path,) = written.iterdir()
    assert path.name.startswith("events.out.tfevents.")
    first, *events = [dict(parse(frame)) for frame in frames(path.read_bytes())]
    assert first[3] == b"brain.Event:2"
    found = {}
    for event in events:
        for _, value in parse(event[5]):
            fields = dict(parse(value))
            found[fields[1].decode(), event[2]] = struct.unpack("<f", fields[-2])[0]
    assert found == pytest.approx(EXPECTED)
    lines = (written.parents[1] / "first" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == [line["kind"] for line in LINES]


def test_the_checksum_is_castagnolis() -> None:
    """RFC 3720, B.4: 32 bytes of zeros, and the masks that TFRecord puts over it."""
    file = EventFile.__new__(EventFile)
    file._crcs = event_file._table()
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert file._checked(bytes(32)) == struct.pack("<I", masked)


def test_tensorboards_own_reader_reads_it(written: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(written))
    board.Reload()
    found = {
        (tag, item.step): item.value
        for tag in board.Tags()["scalars"]
        for item in board.Scalars(tag)
    }
    assert found == pytest.approx(EXPECTED)
