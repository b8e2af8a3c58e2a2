"""`adapter.json`: a round trip, older files, and what must be refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from edgeladder.core.adapter_record import (
    AdapterRecord,
    BlendRecord,
    CalibrationRecord,
    GdaRecord,
    KernelRecord,
    KnownRecord,
    StoredHead,
    read_adapter_record,
    write_adapter_record,
)
from edgeladder.core.errors import IntegrityError

GDA = GdaRecord(weight=1.5, prior=0.5, reads=(-3, -2))
KERNEL = KernelRecord(
    kind="kernel", weights=(0.1, 1.0), scales=(1.0, 2.0), ridge=0.3, temperature=8.0, prior=1.0
)
HEADS = [None, StoredHead(GDA, 0.7), StoredHead(KERNEL, 2.0, 0.0)]
HEADS.append(StoredHead(BlendRecord(heads=(KERNEL, GDA))))


@pytest.mark.parametrize("head", HEADS)
def test_a_round_trip(tmp_path: Path, head: StoredHead | None) -> None:
    record = AdapterRecord(
        bundle_digest="a",
        ladder_digest="b",
        classes=["x"],
        class_names=["ex"],
        head=head,
        calibration=CalibrationRecord(temperature=31.5, pictures=12) if head else None,
        known=KnownRecord(threshold=0.25, reads=(-3, -1)) if head else None,
        sha256="c" * 64,
    )
    write_adapter_record(tmp_path, record)
    assert read_adapter_record(tmp_path) == record
    values = json.loads((tmp_path / "adapter.json").read_text())
    if head is not None:  # the keys of every version so far
        assert (values["head"]["eta"], values["head"]["ladder"]) == (
            head.head_weight,
            head.ladder_weight,
        )


def test_an_older_file_takes_defaults(tmp_path: Path) -> None:
    values = {
        "schema_version": 1,
        "bundle_digest": "a",
        "ladder_digest": "b",
        "classes": ["x", "y"],
        "class_names": None,
        "model": {"name": "nano", "pretrained": "none"},
        "head": {"kind": "gda", "weight": 1, "prior": 1},
        "note": "a key of another version",
    }
    (tmp_path / "adapter.json").write_text(json.dumps(values))
    record = read_adapter_record(tmp_path)
    assert record.class_names == ["x", "y"] and record.model == "nano"
    assert record.head == StoredHead(GdaRecord(weight=1.0, prior=1.0), 1.0, 1.0)
    assert record.calibration is None and record.known is None
    assert record.is_unhashed
    write_adapter_record(tmp_path, replace(record, sha256="c" * 64))
    assert not read_adapter_record(tmp_path).is_unhashed


def test_a_temperature_that_divides_nothing_is_refused(tmp_path: Path) -> None:
    write_adapter_record(tmp_path, replace(RECORD, calibration=CalibrationRecord(temperature=0.0)))
    with pytest.raises(IntegrityError, match="0.0 is not gt 0"):
        read_adapter_record(tmp_path)


RECORD = AdapterRecord(
    bundle_digest="a" * 64,
    ladder_digest="b" * 64,
    classes=["hat", "shirt"],
    class_names=["a hat", "a café shirt"],
    head=HEADS[-1],
    sha256="c" * 64,
)


def test_a_flipped_bit_changes_nothing_or_is_refused(tmp_path: Path) -> None:
    write_adapter_record(tmp_path, RECORD)
    path, source, refused = tmp_path / "adapter.json", random.Random(2), 0
    whole = path.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << source.randrange(8)
        path.write_bytes(data)
        try:
            assert read_adapter_record(tmp_path) == RECORD, place
        except IntegrityError:
            refused += 1
    assert refused > len(whole) * 0.8  # the rest: blanks between the values


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["shirt", "hat"]},
        {"sha256": "d" * 64},
        {"schema_version": 1},  # as if it were of a version that had no digest
        {"digest": None},
        {"note": "one more"},
    ],
)
def test_a_changed_record_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write_adapter_record(tmp_path, RECORD)
    values = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps(values))
    assert read_adapter_record(tmp_path) == RECORD  # written otherwise, the same
    (tmp_path / "adapter.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(IntegrityError, match="its digest differs"):
        read_adapter_record(tmp_path)


def test_the_hash_of_the_weights_is_part_of_it(tmp_path: Path) -> None:
    write_adapter_record(tmp_path, replace(RECORD, sha256=""))
    with pytest.raises(IntegrityError, match="lacks the hash of the weights"):
        read_adapter_record(tmp_path)


def test_what_is_not_text_is_refused_in_a_few_words(tmp_path: Path) -> None:
    write_adapter_record(tmp_path, RECORD)
    path = tmp_path / "adapter.json"
    path.write_bytes(path.read_bytes()[:9] + b"\xff" + path.read_bytes()[10:])
    with pytest.raises(IntegrityError, match="unreadable adapter.json") as caught:
        read_adapter_record(tmp_path)
    assert "position 9" in str(caught.value) and "bundle_digest" not in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "oracle"},
        {"kind": "kernel", "weight": 1},
        {"kind": "gda", "weight": "much", "prior": 1},
        [1],
    ],
)
def test_an_unreadable_head_is_refused(tmp_path: Path, head: object) -> None:
    values = {"schema_version": 1, "bundle_digest": "a", "ladder_digest": "b", "classes": ["x"]}
    (tmp_path / "adapter.json").write_text(json.dumps({**values, "head": head}))
    with pytest.raises(IntegrityError, match="unreadable adapter.json"):
        read_adapter_record(tmp_path)
