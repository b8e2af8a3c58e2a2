"""`python -m edgeladder.cli.finish [--json] [--no-pictures] RUN`: report and answer of a run.

What `edgeladder train` does last, for a training that a bare supervisor ran in its place.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgeladder.cli.app import explain
from edgeladder.cli.output import Output
from edgeladder.cli.train_commands import finished
from edgeladder.core.records import read_record
from edgeladder.core.result import RunResult


def main() -> int:
    """Answer from the run's result.json; the exit code of the design."""
    *flags, run = sys.argv[1:]
    with Output("--json" in flags) as output:
        try:
            path = Path(run) / "result.json"
            result = read_record(RunResult, path)
            output.answer(finished(result, pictures="--no-pictures" not in flags))
            return 0
        except Exception as error:
            failure, code = explain(error)
            if failure is not None:
                output.failure(failure)
            return code


if __name__ == "__main__":
    sys.exit(main())
