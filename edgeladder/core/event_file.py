"""TensorBoard's event files, written without TensorBoard: its protobuf messages in TFRecord frames.

    frame      length (uint64), masked CRC-32C of it, the message, masked CRC-32C of that
    Event      1: wall_time (double), 2: step (varint), 3: file_version, 5: Summary
    Summary    1: Value, repeated;  Value  1: tag, 2: simple_value (float)

Both are described in TensorFlow's documentation (tf.data's TFRecord, event.proto, summary.proto).
Standard library only, and a few kilobytes: the processes that write count inside the budget.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeladder.core import disk
from edgeladder.core.files import storage_errors

_CASTAGNOLI = 0x82F63B78  # CRC-32C's polynomial, reversed
_MASK = 0xA282EAD8
_VERSION = b"brain.Event:2"
_MB = 1e6


def _table() -> list[int]:
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
        rows.append(byte)
    return rows


class EventFile:
    """One file of scalars below a folder of TensorBoard's."""

    def __init__(self, folder: Path):
        """Make the folder and a new file in it.

        Raises:
            StorageError: it cannot be made.
        """
        self._crcs = _table()
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        with storage_errors(folder):
            disk.make_folders(folder)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
        self._write(_field(3, _VERSION))

    def record(self, values: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl` as scalars, where there is anything to draw.

        Raises:
            StorageError: the disk is full.
        """
        kind = values.get("kind")
        if kind == "step":
            names = ("loss", "gradient_norm", "learning_rate", "seconds")
            told = {f"train/{name}": values[name] for name in names if values.get(name) is not None}
            self._scalars(int(values["step"]), told)
        elif kind == "phase":
            peak = values["measured_peak_bytes"] / _MB
            self._scalars(0, {f"memory/{values['phase']} peak MB": peak})
        elif kind == "result":
            shares = values["accuracy"]
            told = {f"accuracy/{name}": shares[name] for name in ("zero_shot", "tuned")}
            self._scalars(int(values["steps"]), told)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        summary = b"".join(
            _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in values.items()
            if value is not None
        )
        if summary:
            self._write(b"\x10" + _varint(step) + _field(5, summary))

    def _write(self, event: bytes) -> None:
        message = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(message))
        frame = length + self._checked(length) + message + self._checked(message)
        with storage_errors(self.path):
            disk.write(self._descriptor, frame)

    def _checked(self, data: bytes) -> bytes:
        """A masked CRC-32C: rotated by 15 bits and moved, so that a CRC of CRCs is none."""
        crc = 0xFFFFFFFF
        for byte in data:
            crc = crc >> 8 ^ self._crcs[(crc ^ byte) & 255]
        crc ^= 0xFFFFFFFF
        return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content
