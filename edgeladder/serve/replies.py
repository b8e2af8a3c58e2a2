"""Answers of the HTTP service: JSON, and of errors the same four fields as on the command line.

Nothing of the machine stands in them: no path, no version, no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from edgeladder.core.printable import json_text

_DISCARD_FACTOR = 2  # of the body limit is read and dropped, so that the client sees the answer


class ReplyError(Exception):
    """A request that ends in an error."""

    def __init__(
        self, status: int, message: str, *, remedy: str | None = None, kind: str = "DataError"
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.remedy = remedy
        self.kind = kind
        self.headers: dict[str, str] = {}

    def response(self) -> Response:
        """As JSON."""
        error = {
            "type": self.kind,
            "message": self.message,
            "where": None,
            "remedy": self.remedy,
        }
        return reply({"error": error}, self.status, self.headers)


def busy(message: str, seconds: int = 1) -> ReplyError:
    """503: come again after so many seconds."""
    error = ReplyError(503, message, remedy="send it again a little later", kind="BusyError")
    error.headers["Retry-After"] = str(seconds)
    return error


def reply(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Values as JSON."""
    body = json_text(values, indent=None, allow_nan=False) + "\n"
    return Response(
        body.encode(), status, {**(headers or {})}, media_type="application/json; charset=utf-8"
    )


async def discard(request: Request, receive: Receive, body_bytes: int) -> None:
    """Read and drop what is left of a body, within bounds.

    A connection that is closed while its client still sends loses the answer on the way. The
    caller bounds the time. Who asked first (`Expect: 100-continue`) sends nothing.
    """
    if request.headers.get("expect", "").lower() == "100-continue":
        return
    length = request.headers.get("content-length", "")
    most = _DISCARD_FACTOR * body_bytes
    if length.isdigit() and int(length) > most:
        return
    dropped = 0
    while dropped <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
