"""One request in, one JSON line out."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import TYPE_CHECKING, cast

from edgeladder.fleet.box import jobs, probe, prune, store
from edgeladder.fleet.box.records import (
    AssembleRequest,
    Call,
    HaveRequest,
    OutputsRequest,
    ProbeRequest,
    PruneRequest,
    ReceiveRequest,
    Refusal,
    SendRequest,
    StartRequest,
    StatusRequest,
    StopRequest,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader, BufferedWriter

# Besides these, a ReceiveRequest reads on from stdin and a SendRequest writes on to stdout.
OPERATIONS: dict[type, Callable[..., object]] = {
    AssembleRequest: store.assemble,
    HaveRequest: store.have,
    OutputsRequest: jobs.outputs,
    ProbeRequest: probe.probe,
    PruneRequest: prune.prune,
    StartRequest: jobs.start,
    StatusRequest: jobs.status,
    StopRequest: jobs.stop,
}


def answer(line: bytes, stdin: BufferedReader, stdout: BufferedWriter) -> None:
    """Carry out the request of one line and write its answer; errors are answers too."""
    try:
        found = _carry_out(from_json(Call, json.loads(line.decode())), stdin, stdout)
    except store.Refused as error:
        found = Refusal(error.kind, str(error), error.remedy)
    except ValueError as error:
        found = Refusal("refused", f"the agent takes no such request: {error}")
    except OSError as error:
        kind = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else "refused"
        where = f" ({error.filename})" if error.filename else ""
        found = Refusal(kind, (error.strerror or type(error).__name__) + where)
    if found is not None:
        stdout.write(json.dumps(to_json(found)).encode() + b"\n")
    stdout.flush()


def _carry_out(call: Call, stdin: BufferedReader, stdout: BufferedWriter) -> object | None:
    """The answer's record, or None where it is written already."""
    root = os.path.abspath(os.path.expanduser(call.root))
    request = call.request
    if not isinstance(request, ProbeRequest):
        os.makedirs(root, exist_ok=True)
    if isinstance(request, ReceiveRequest):
        return store.receive(root, request, stdin)
    if isinstance(request, SendRequest):
        jobs.send(root, request, stdout)
        return None
    return OPERATIONS[type(request)](root, request)


def main() -> None:
    """Serve the one request on standard input."""
    os.umask(0o077)
    stdin = cast("BufferedReader", sys.stdin.buffer)
    stdout = cast("BufferedWriter", sys.stdout.buffer)
    answer(stdin.readline(), stdin, stdout)
