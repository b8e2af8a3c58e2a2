"""One picture out of a request, into a file of our own: memory does not grow with it."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import BinaryIO

import anyio
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from edgeladder.core.printable import one_line
from edgeladder.serve.replies import ReplyError
from edgeladder.serve.settings import Limits

_COPY_BYTES = 1 << 16
_LENGTH_DIGITS = 18  # beyond, it is too large whatever it says
_NAME_CHARACTERS = 200  # of a client's name for its picture, given back to it
_NO_PICTURES = ("application/json", "text/html", "text/plain")
UNNAMED = "picture"


async def receive_picture(request: Request, limits: Limits, path: Path) -> str:
    """Write the picture of a request to a new file.

    Args:
        request: with the file as its body, or as the one file of a form.
        limits: of its size and time.
        path: of the file to make.

    Returns:
        The client's own name for it, without folders.

    Raises:
        ReplyError: too large, too slow, no picture in it, or of a type that is none.
        ClientDisconnect: the client went away.
    """
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):  # "²" is a digit too
        raise ReplyError(400, "Content-Length is no number", kind="ConfigError")
    if len(length) > _LENGTH_DIGITS or int(length) > limits.body_bytes:
        raise too_large(limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _NO_PICTURES:
        raise ReplyError(
            415,
            f"a body of type {one_line(kind)} is no picture",
            remedy="send the picture's bytes as they are, or a form with one file",
        )
    bounded = Request(request.scope, _Bounded(request.receive, limits))
    try:
        with anyio.fail_after(limits.body_seconds):
            if kind == "multipart/form-data":
                return await _from_form(bounded, path)
            with _new(path) as stream:
                async for chunk in bounded.stream():
                    stream.write(chunk)
    except TimeoutError:
        raise ReplyError(
            408,
            f"the picture did not come within {limits.body_seconds:g} s",
            remedy="send it again, or a smaller one",
        ) from None
    if not path.stat().st_size:
        raise ReplyError(400, "no picture in this request", remedy="send its bytes as the body")
    return UNNAMED


def too_large(limits: Limits) -> ReplyError:
    """413."""
    return ReplyError(
        413,
        f"the body is larger than {limits.body_bytes / 1e6:g} MB",
        remedy="send a smaller picture, or start the service with a larger --max-body",
    )


class _Bounded:
    """A request's messages, up to so many bytes."""

    def __init__(self, receive: Receive, limits: Limits):
        self._receive = receive
        self._limits = limits
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.body_bytes:
            raise too_large(self._limits)
        return message


async def _from_form(request: Request, path: Path) -> str:
    async with AsyncExitStack() as stack:
        try:
            form = await stack.enter_async_context(
                request.form(max_files=1, max_fields=8, max_part_size=_COPY_BYTES)
            )
        except (ReplyError, ClientDisconnect, OSError, TimeoutError):
            raise
        except Exception as error:  # parsers raise almost anything over a broken form
            said = getattr(error, "message", "") or type(error).__name__
            raise ReplyError(400, f"not a form: {said}", kind="ConfigError") from None
        files = [item for item in form.values() if isinstance(item, UploadFile)]
        if len(files) != 1:
            raise ReplyError(400, "the form holds no file", remedy="add the picture as a file")
        with _new(path) as stream:
            while chunk := await files[0].read(_COPY_BYTES):
                stream.write(chunk)
        if not path.stat().st_size:
            raise ReplyError(400, "the form's file is empty", remedy="add the picture as a file")
        name = (files[0].filename or UNNAMED).replace("\\", "/").rpartition("/")[2]
        return one_line(name)[:_NAME_CHARACTERS] or UNNAMED


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
