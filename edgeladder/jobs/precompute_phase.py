"""The precompute worker: pictures and class names through the frozen towers into the cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeladder.budget import policy
from edgeladder.core.bundle import Bundle
from edgeladder.core.trim import trim_heap
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.towers.fill_cache import PrecomputeSizes, Wanted, precompute
from edgeladder.runtime.towers.runner import TowerSizes

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control

_TELL_SECONDS = 0.2


class _LeaveError(Exception):
    """An order to leave: raised out of the work, which keeps every group before this one."""


def fill(values: dict[str, Any], control: Control) -> tuple[str, dict[str, Any]]:
    """Compute what the cache lacks; writes the run's selection of samples.

    Args:
        values: what the plan worker prepared, and `sizes`: whole, batch, group, max_pixels.
    """
    request, sizes = values["request"], values["sizes"]
    bundle = Bundle.reopen(request["bundle"])
    dataset = open_data(request["data"])
    train, test = split(dataset, request["shots"], values["seed"])
    leave: list[str] = []
    told_at = 0.0

    def obey() -> None:
        for order in control.take():
            if order in ("stop", "restart"):
                leave.append(order)
            elif order == "trim":
                trim_heap()
        if leave:
            raise _LeaveError

    def progress(done: int, total: int, note: str) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= _TELL_SECONDS or done == total:
            told_at = now
            control.tell("progress", step=done, steps=total, note=note)
        obey()

    try:
        result = precompute(
            bundle,
            dataset,
            request["cache"],
            Wanted(train, test, request["views"] or 0, request["cache_dtype"]),
            sizes=tower_sizes(sizes, values["threads"]),
            progress=progress,
            on_group=obey,
        )
    except _LeaveError:
        return ("stop" if "stop" in leave else "restart"), {}
    if request["run"]:
        run = RunDirectory(Path(request["run"]))
        result.selection.save(run.selection)
    values = result.to_dict()
    values["skipped_inputs"] = values.pop("skipped")
    return "done", values


def tower_sizes(sizes: dict[str, Any], threads: int) -> PrecomputeSizes:
    """The plan's choice as precompute takes it; what it leaves open is the policy's to say."""
    whole, batch = bool(sizes.get("whole")), sizes.get("batch")
    return PrecomputeSizes(
        image=TowerSizes(
            group=sizes.get("group") or policy.GROUP,
            batch=batch or policy.IMAGE_BATCH,
            threads=threads,
            whole=whole,
        ),
        text=TowerSizes(
            group=policy.TEXT_GROUP,
            batch=batch or policy.TEXT_BATCH,
            threads=threads,
            whole=whole,
        ),
        max_pixels=sizes.get("max_pixels") or policy.EXACT_PIXELS,
    )
