"""A new run beside the one it was begun from: both on the same pictures, and which is better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeladder.cli.progress import Progress
from edgeladder.cli.run_commands import verdict
from edgeladder.core.errors import EdgeLadderError, Interrupted
from edgeladder.core.files import write_json
from edgeladder.core.inference import InferenceRequest
from edgeladder.core.records import to_json

if TYPE_CHECKING:
    from edgeladder.core.result import RunResult

COMPARISON = "comparison.json"  # in the new run's folder


def beside_previous(result: RunResult) -> dict[str, Any] | None:
    """Compare a finished run with the previous one on its data; None where there was none.

    Returns:
        `run`, `note` (whether it was begun from, and why not), and `comparison` or `error`: a
        run stands, even where the comparison does not fit the budget.
    """
    from edgeladder.core.run_config import read_config
    from edgeladder.jobs.comparison import compare

    request = read_config(Path(result.run) / "config.yaml").request
    if request.previous is None:
        return None
    values: dict[str, Any] = {"run": request.previous, "note": request.start_note}
    asked = InferenceRequest(
        command="judge",
        run=result.run,
        budget_bytes=result.memory.budget_bytes,
        device=request.device,
        threads=request.threads,
        limit=request.limit,
    )
    try:
        with Progress() as progress:
            found, memory = compare(request.previous, asked, progress)
    except Interrupted:
        raise
    except EdgeLadderError as error:
        return {**values, "error": error.to_dict()}
    values["comparison"] = {**to_json(found), "memory": to_json(memory)}
    write_json(Path(result.run) / COMPARISON, values["comparison"])
    return values


def told(values: dict[str, Any] | None) -> list[str]:
    """The same for a person."""
    if values is None:
        return []
    lines = [values["note"]] if values["note"] else []
    if "error" in values:
        return [*lines, f"not compared with {values['run']}: {values['error']['message']}"]
    return [*lines, *verdict(values["comparison"])]
