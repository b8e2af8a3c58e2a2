"""`adapter.json`: a round trip, older files, and what must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeladder.core.adapter_record import (
    AdapterRecord,
    BlendRecord,
    GdaRecord,
    KernelRecord,
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
        bundle_digest="a", ladder_digest="b", classes=["x"], class_names=["ex"], head=head
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
