"""After a run's last phase: its checkpoints go, and what it came to stays to be asked for again.

Both generations are many times the adapter's size, and only an unfinished run needs them: what
condenses, averages or goes on from a run begins from its adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeladder.core import disk
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.files import read_json, sha256_file
from edgeladder.core.records import read_record
from edgeladder.core.result import RunResult

if TYPE_CHECKING:
    from edgeladder.jobs.run_directory import RunDirectory


def drop_checkpoints(run: RunDirectory) -> None:
    """Remove a finished run's generations; called when adapter and result are on the disk.

    A power cut in between leaves one of them or none: training from the older ends with the same
    adapter, and without any `finished_result` answers.
    """
    disk.remove_tree(run.checkpoints)


def finished_result(run: RunDirectory) -> RunResult | None:
    """The result of a run that ended and dropped its checkpoints; None: there is work to do.

    Where the adapter is not what its record says, training starts anew.
    """
    if any(run.checkpoints.glob("step-*.safetensors")) or not run.result.is_file():
        return None
    try:
        record = read_json(run.adapter_record)
        whole = isinstance(record, dict) and record.get("sha256") == sha256_file(run.adapter)
        return read_record(RunResult, run.result, others_keys=True) if whole else None
    except (OSError, ValueError, EdgeLadderError):
        return None
