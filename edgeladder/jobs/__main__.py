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


class _Events:
    """Progress as JSON lines on stdout, for a program that asked for them."""

    def __enter__(self) -> _Events:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __call__(self, *event: Any) -> None:
        print(json.dumps({"progress": event}), flush=True)

    def evidence(self, values: dict[str, Any]) -> None:
        """What is done about memory stands in the run and in the answer."""


def _answer(command: str, request: Any, progress: Progress | _Events) -> Any:
    """The JSON values of a command's answer."""
    with progress:
        if command == "plan":
            return to_json(supervisor.plan(request))
        if command == "precompute":
            filled, memory = supervisor.precompute(request, progress, progress.evidence)
            return {**to_json(filled), "memory": to_json(memory)}
        if command == "train":
            return to_json(supervisor.train(request, progress, progress.evidence))
        from edgeladder.jobs.inference import run_inference  # no training needs it

        result, memory = run_inference(request, progress, progress.evidence)
        return {**to_json(result), "memory": to_json(memory)}


def _request(command: str, values: Any) -> Any:
    if command in ("plan", "precompute", "train"):
        return from_json(TrainRequest, values, where="the command line")
    from edgeladder.core.inference import InferenceRequest

    return from_json(InferenceRequest, values, where="the command line")


def main() -> int:
    """Run one command; the exit code of the design."""
    values = json.loads(sys.stdin.read() if sys.argv[1] == "-" else sys.argv[1])
    command, events = values.get("command", "train"), bool(values.get("events"))
    request = _request(command, values["request"])
    progress = _Events() if events else Progress(values.get("level", NORMAL))
    try:
        result = _answer(command, request, progress)
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
    if events:
        print(json.dumps({"result": result}), flush=True)
        return 0
    print(json.dumps(result) if values["json"] else json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
