"""`python -m edgeladder.jobs REQUEST`: the bare supervisor (see `supervisor.become`)."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from edgeladder.core.errors import BudgetError
from edgeladder.core.failures import known_failure
from edgeladder.core.printable import one_line, printable
from edgeladder.core.progress import NORMAL, Progress
from edgeladder.core.records import from_json, to_json
from edgeladder.core.request import TrainRequest
from edgeladder.jobs import supervisor


def _answer(command: str, request: TrainRequest, level: int) -> Any:
    """The JSON values of a command's answer."""
    with Progress(level) as progress:
        if command == "precompute":
            filled, memory = supervisor.precompute(request, progress, progress.evidence)
            return {**to_json(filled), "memory": to_json(memory)}
        return to_json(supervisor.train(request, progress, progress.evidence))


def main() -> int:
    """Run one command; the exit code of the design."""
    values = json.loads(sys.argv[1])
    request = from_json(TrainRequest, values["request"], where="the command line")
    try:
        result = _answer(values.get("command", "train"), request, values.get("level", NORMAL))
    except Exception as failure:
        error = known_failure(failure)
        if error is None:
            raise
        described: dict[str, Any] = error.to_dict()
        if isinstance(error, BudgetError) and error.minimum_budget_bytes:
            described["minimum_budget_bytes"] = error.minimum_budget_bytes
        if values["json"]:
            print(json.dumps({"error": described}))
        else:
            print(f"error: {printable(error.message)}", file=sys.stderr)
            if error.where:
                print(f"where: {one_line(error.where)}", file=sys.stderr)
            if error.remedy:
                print(f"help:  {printable(error.remedy)}", file=sys.stderr)
        return error.exit_code
    if values.get("then"):
        os.execv(sys.executable, [sys.executable, *values["then"], result["run"]])
    print(json.dumps(result) if values["json"] else json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
