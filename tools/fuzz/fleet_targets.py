"""Fuzzed: what a fleet reads. Inventories, and everything that a box says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

from edgeladder.core.bundle import Bundle
from edgeladder.core.initial import initial_values
from edgeladder.core.records import to_json as plain
from edgeladder.core.tensors import write_tensors
from edgeladder.fleet import ansible, transport
from edgeladder.fleet.box import records
from edgeladder.fleet.box.records import FileRecord, JobState, to_json
from edgeladder.fleet.inventory import Host, Inventory
from edgeladder.fleet.outcomes import HostError
from edgeladder.fleet.pull import _check
from edgeladder.fleet.pulled import PulledResult, PullRecord
from edgeladder.fleet.remote_jobs import Progress, _update
from tools.fuzz.file_targets import scratch
from tools.fuzz.targets import Target

_INVENTORY = b"""defaults: {user: pi, key: ~/.ssh/fleet, budget: 1GB}
groups:
  farm: {device: raspberry-pi-5, jump: gate}
hosts:
  gate: {address: gate.example.org, tags: [jump]}
  barn-1: {address: 10.0.0.11, groups: [farm], data: ~/pictures, port: 2222}
"""
_LISTED = {
    "_meta": {
        "hostvars": {
            "barn": {
                "ansible_host": "10.0.0.1", "ansible_port": 22, "edgeladder_budget": "1GB",
                "ansible_ssh_common_args": "-o ProxyCommand='ssh -W %h:%p -p 22 pi@gate'",
            },
            "gate": {"ansible_user": "pi", "ansible_connection": "ssh"},
        }
    },
    "all": {"children": ["ungrouped", "farm"]},
    "farm": {"hosts": ["barn", "gate"]},
}  # fmt: skip


def _inventory(content: bytes, folder: Path) -> Any:
    path = folder / "fleet.yaml"
    path.write_bytes(content)
    if ansible.looks_like(path):
        return "Ansible's"  # whose own program reads it; what that prints is another target
    found = Inventory.open(path)
    return [[plain(host) for host in found.hosts], str(found.known_hosts)]


def _ansible(content: bytes, folder: Path) -> Any:
    """What `ansible-inventory` printed: its program is left out, its output is the input."""
    path = folder / "hosts"
    path.write_bytes(b"")
    done = mock.Mock(returncode=0, stdout=content.decode("utf-8", "replace"), stderr="")
    with (
        mock.patch("subprocess.run", lambda *_, **__: done),
        mock.patch("shutil.which", lambda *_, **__: "ansible-inventory"),
    ):
        found = Inventory.open(path)
    return [[plain(host) for host in found.hosts], found.notes]


_JOB = JobState("done", 0, 1, "systemd", 1.5)
_ANSWERS: tuple[Any, ...] = (
    records.ProbeAnswer(
        "Pi", "aarch64", "Linux", 4, "3.11.2", True, {"numpy": "1.26"}, 8 << 30, 4 << 30, 0,
        "cgroup", "systemd", 1 << 30, True, True, "a" * 64, 1.5,
    ),
    records.HaveAnswer(True, {"a" * 64: 3}, ("b" * 64,), 1 << 30),
    records.ReceiveAnswer(("a" * 64,), ()),
    records.AssembleAnswer(True, False),
    records.PruneAnswer(("bundle",), 7),
    records.StartAnswer(_JOB, True),
    records.StatusAnswer(_JOB, 10, ('{"kind": "step", "step": 1, "loss": 0.5}',)),
    records.StopAnswer(_JOB, True),
    records.OutputsAnswer(_JOB, {"run/result.json": FileRecord(3, "a" * 64)}, ("report.html",)),
    records.SendAnswer(9),
    records.Refusal("disk", "full", None),
)  # fmt: skip
_KINDS = {type(answer).__name__: type(answer) for answer in _ANSWERS}


def _answer(content: bytes, folder: Path) -> Any:
    """An answer's line, read for each kind of answer that it might be taken for."""
    host = Host("barn", "10.0.0.1")
    values = transport.read_line(content, host)
    kind = _KINDS.get(str(values.get("is")), records.StatusAnswer)
    try:
        found: Any = transport._answer(kind, values, host)
    except HostError as error:
        if error.kind != "disk":  # the refusal among the seeds
            raise
        return error.message
    if isinstance(found, records.StatusAnswer):
        progress = Progress("barn")
        _update(progress, found, "run/metrics.jsonl")
        json.dumps(progress.facts())
    return to_json(found)


_PULLED_RESULT = b"""{"accuracy": {"zero_shot": 0.25, "tuned": 0.5}, "counts": {"train": 4},
"count": 2, "steps": 10, "memory": {"budget_bytes": 100, "enforcement": "cgroup", "phases":
{"train": {"measured_peak_bytes": 8}}}, "error": {"message": "none"}}"""


def _pulled(content: bytes, folder: Path, name: str) -> Any:
    (folder / name).write_bytes(content)
    _check(folder / name, None, "barn")
    return plain(PulledResult.read(folder)) if name == "result.json" else None


def _pull_record(content: bytes, folder: Path) -> Any:
    (folder / "pull.json").write_bytes(content)
    return plain(PullRecord.read(folder))


_bundles: dict[str, Bundle] = {}


def _tensor_seeds(bundle: Path) -> list[bytes]:
    _bundles["bundle"] = Bundle.open(bundle, verify=False)
    path = scratch(bundle, "pulled") / "adapter.safetensors"
    write_tensors(path, dict(initial_values(_bundles["bundle"])))
    return [path.read_bytes()]


def _pulled_adapter(content: bytes, folder: Path) -> Any:
    (folder / "adapter.safetensors").write_bytes(content)
    _check(folder / "adapter.safetensors", _bundles["bundle"].manifest, "barn")


_RECORD = json.dumps(plain(PullRecord("done", 0, {"run/result.json": FileRecord(3, "a" * 64)})))
_LINES = b'{"time": 1.5, "kind": "step", "step": 1, "loss": 0.5}\n{"kind": "start", "plan": {}}\n'

TARGETS = [
    Target("inventory", "yaml", lambda _: [_INVENTORY], _inventory),
    Target("ansible", "json", lambda _: [json.dumps(_LISTED).encode()], _ansible),
    Target(
        "answer", "json", lambda _: [json.dumps(to_json(a)).encode() for a in _ANSWERS], _answer
    ),
    Target(
        "pulled-result", "json", lambda _: [_PULLED_RESULT],
        lambda c, f: _pulled(c, f, "result.json"),
    ),
    Target(
        "pulled-metrics", "jsonl", lambda _: [_LINES], lambda c, f: _pulled(c, f, "metrics.jsonl")
    ),
    Target("pulled-adapter", "tensors", _tensor_seeds, _pulled_adapter),
    Target("pull-record", "json", lambda _: [_RECORD.encode()], _pull_record),
]  # fmt: skip
