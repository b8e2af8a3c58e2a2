"""One request in, one JSON line out."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

from edgeladder.fleet.box import jobs, probe, prune, store

OPERATIONS = {
    "probe": probe.probe,
    "have": store.have,
    "receive": store.receive,
    "assemble": store.assemble,
    "prune": prune.prune,
    "start": jobs.start,
    "status": jobs.status,
    "stop": jobs.stop,
    "outputs": jobs.outputs,
    "send": jobs.send,
}


def refusal(kind: str, message: str, remedy: str | None) -> dict[str, Any]:
    """An error as the controller reads it."""
    return {"error": {"kind": kind, "message": message, "remedy": remedy}}


def answer(
    request: dict[str, Any], stdin: store.BufferedReader, stdout: store.BufferedWriter
) -> None:
    """Carry out one request and write its answer; errors are answers too."""
    try:
        root = os.path.abspath(os.path.expanduser(request["root"]))
        if request["op"] != "probe":
            os.makedirs(root, exist_ok=True)
        found = OPERATIONS[request["op"]](root, request, stdin, stdout)
        if found is None:
            stdout.flush()
            return
    except store.Refused as error:
        found = refusal(error.kind, str(error), error.remedy)
    except OSError as error:
        kind = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else "refused"
        where = f" ({error.filename})" if error.filename else ""
        found = refusal(kind, (error.strerror or type(error).__name__) + where, None)
    stdout.write(json.dumps(found).encode() + b"\n")
    stdout.flush()


def main() -> None:
    """Serve the one request on standard input."""
    os.umask(0o077)
    stdin: Any = sys.stdin.buffer
    stdout: Any = sys.stdout.buffer
    answer(json.loads(stdin.readline().decode()), stdin, stdout)
