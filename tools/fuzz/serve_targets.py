"""Fuzzed: requests to `edgeladder serve`. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from edgeladder.core.printable import one_line
from edgeladder.runtime.pictures.decode import decode_square
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.serve.application import _labels
from edgeladder.serve.intake import receive_picture
from edgeladder.serve.replies import ReplyError
from edgeladder.serve.settings import Limits
from tools.fuzz.data_targets import _PREPROCESS, _picture
from tools.fuzz.targets import Refused, Target

_LIMITS = Limits(body_bytes=100_000)
_PIECE = 1000  # bytes of a body that come at once
_FORM = (
    b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="C:\\\\a\\\\b.png"\r\n'
    b"Content-Type: image/png\r\n\r\n%b\r\n--x--\r\n"
)


def _seeds(bundle: Path) -> list[bytes]:
    """The query, headers and, after an empty line, the body."""
    picture = _picture("PNG")
    form = _FORM % picture
    return [
        b"top=3\ncontent-type: image/png\ncontent-length: %d\n\n%b" % (len(picture), picture),
        b"\ncontent-type: multipart/form-data; boundary=x\ncontent-length: %d\n\n%b"
        % (len(form), form),
    ]


def _request(content: bytes) -> Request:
    head, _, body = content.partition(b"\n\n")
    query, *lines = head.split(b"\n")
    pairs = [line.partition(b":")[::2] for line in lines]
    pieces = [body[at : at + _PIECE] for at in range(0, len(body), _PIECE)] or [b""]
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting, {"type": "http.disconnect"})

    return Request(
        {
            "type": "http", "method": "POST", "path": "/predict", "query_string": query,
            "headers": [(name.strip().lower(), value.strip()) for name, value in pairs],
        },
        receive,
    )  # fmt: skip


def _predict(content: bytes, folder: Path) -> Any:
    """A request up to the worker, and the picture as the worker decodes it."""
    path = folder / "1.picture"

    async def taken() -> tuple[int, str]:
        request = _request(content)
        return _labels(request), await receive_picture(request, _LIMITS, path)

    try:
        top, name = asyncio.run(taken())
    except ReplyError as error:
        assert 400 <= error.status < 500, f"answered with {error.status}"
        error.response()
        raise Refused(error.message) from error
    assert [found.name for found in folder.iterdir()] == [path.name], "another file was made"
    assert "/" not in name and name == one_line(name) and 1 <= top <= 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about what it finds odd
        try:
            square = decode_square(path.read_bytes(), _PREPROCESS, max_pixels=1 << 20)
        except UnreadableError as error:
            raise Refused(str(error)) from error
    return [top, name, square.tobytes()]


TARGETS = [Target("http-predict", "bytes", _seeds, _predict)]
