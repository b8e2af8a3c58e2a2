"""The kernel's limit around a worker: the budget less what the waiting process occupies."""

from __future__ import annotations

import os

from edgeladder.budget import meter, policy
from edgeladder.budget.limits import MemoryLimit, open_limit
from edgeladder.core.plan import MachineBaseline


def open_worker_limit(
    layer: str, budget_bytes: int, baseline: MachineBaseline | None
) -> MemoryLimit:
    """Open a limit; the caller closes it.

    Args:
        layer: auto, none, or one by name.
        budget_bytes: of the whole process tree; 0: no limit.
        baseline: of this machine, where it is known.
    """
    if not budget_bytes:
        return MemoryLimit("none")
    return open_limit(
        layer,
        policy.worker_limit(
            budget_bytes,
            supervisor_bytes=meter.private(os.getpid()),
            file_bytes=baseline.file_bytes if baseline else 0,
        ),
        data_slack_bytes=baseline.data_slack_bytes if baseline else policy.DATA_SLACK_BYTES,
    )
