"""What a report shows: a run directory read into plain values, whatever of it is there.

A run that was stopped, is still going or lost a file to a power cut still has a report; sections
without data say so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeladder.core.errors import ConfigError
from edgeladder.core.files import read_json
from edgeladder.core.yaml_text import read_yaml

# what jobs record and a reader wants to see; steps, checkpoints and peaks have places of their own
EVENT_KINDS = (
    "surrounding",
    "limit",
    "memory",
    "chunk",
    "restart",
    "resume",
    "damaged_checkpoint",
    "rollback",
    "fold",
    "codebook",
    "condense",
)


@dataclass
class RunRecord:
    """A run as the report needs it."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)  # (step, loss)
    events: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)


def read_run(folder: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        ConfigError: there is no run here.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise ConfigError(
            "no run here",
            where=str(folder),
            remedy="name a run directory with --run; `edgeladder train` makes one",
        )
    record = RunRecord(folder)
    if (folder / "config.yaml").is_file():
        config = read_yaml(folder / "config.yaml")
        record.config = config if isinstance(config, dict) else {}
    record.plan = _json(folder / "plan.json")
    record.environment = _json(folder / "environment.json")
    record.result = _json(folder / "result.json")
    record.evaluation = _json(folder / "evaluation.json")
    record.adapter = _json(folder / "adapter.json")
    _read_metrics(folder / "metrics.jsonl", record)
    return record


def _json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_metrics(path: Path, record: RunRecord) -> None:
    if not path.is_file():
        return
    losses: dict[float, float] = {}  # by step: a resumed run tells some steps twice
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                values = json.loads(line)
                kind = values["kind"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # half a line of a power cut
            if kind == "step" and isinstance(values.get("loss"), int | float):
                losses[float(values.get("step", len(losses)))] = float(values["loss"])
            elif kind == "phase":
                record.phases.append(values)
            elif kind == "evaluate":
                if not record.evaluation:
                    record.evaluation = values
            elif kind in EVENT_KINDS:
                record.events.append(values)
    record.losses = sorted(losses.items())


def memory_of(record: RunRecord) -> dict[str, Any]:
    """Budget, enforcement and phases (planned and measured peaks), from whatever knows them."""
    memory = dict(record.result.get("memory") or {})
    phases: dict[str, dict[str, Any]] = {
        name: dict(values) for name, values in (memory.get("phases") or {}).items()
    }
    for name, values in (record.plan.get("phases") or {}).items():
        if isinstance(values, dict):
            planned = values.get("planned_peak_bytes")
            if planned is not None:
                phases.setdefault(name, {}).setdefault("planned_peak_bytes", planned)
    for values in record.phases:
        name = values.get("phase") or values.get("name")
        measured = values.get("measured_peak_bytes") or values.get("peak_bytes")
        if name and measured is not None:
            known = phases.setdefault(str(name), {})
            known["measured_peak_bytes"] = max(known.get("measured_peak_bytes") or 0, measured)
    memory["phases"] = phases
    memory.setdefault("budget_bytes", record.plan.get("budget_bytes"))
    return memory
