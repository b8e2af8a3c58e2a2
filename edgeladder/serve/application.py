"""The HTTP service as an ASGI application: a picture in, JSON out.

GET  /          a page with a camera button
POST /predict   a picture as the body, or as the one file of a form; ?top=N labels
GET  /health    200 while pictures are answered, 503 while a worker starts
GET  /metrics   for Prometheus
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.events import Ready
from edgeladder.core.inference import Prediction, Predictions
from edgeladder.core.printable import one_line
from edgeladder.core.records import to_json
from edgeladder.jobs.service import BusyError, Service, WorkerEndedError
from edgeladder.serve.doors import HEADERS, Doors
from edgeladder.serve.intake import receive_picture
from edgeladder.serve.metrics import CONTENT_TYPE, Metrics
from edgeladder.serve.replies import ReplyError, busy, discard, reply
from edgeladder.serve.settings import Limits

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_DISCARD_SECONDS = 10.0
_MOST_LABELS = 1000

Handler = Callable[[Request], Awaitable[Response]]


class Application:
    """What answers requests, around a `Service`."""

    def __init__(self, service: Service, doors: Doors, limits: Limits, folder: Path):
        """Nothing is answered before `ready`.

        Args:
            service: to be started by the caller.
            doors: who may come in.
            limits: of requests.
            folder: of ours, for pictures on their way to the worker.
        """
        self.metrics = Metrics()
        self.ready: Ready | None = None  # what the service said when it was started
        self._service, self._doors, self._limits = service, doors, limits
        self._folder = folder
        self._numbers = itertools.count(1)
        self._uploads = 0  # each takes up to the body limit on the disk
        self._routes: dict[str, tuple[tuple[str, ...], Handler]] = {
            "/": (("GET", "HEAD"), _static("page.html")),
            "/page.js": (("GET", "HEAD"), _static("page.js")),
            "/page.css": (("GET", "HEAD"), _static("page.css")),
            "/icon.svg": (("GET", "HEAD"), _static("icon.svg")),
            "/predict": (("POST",), self._predict),
            "/health": (("GET", "HEAD"), self._health),
            "/metrics": (("GET", "HEAD"), self._metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every request: doors first, then its route; a body that nobody read is dropped."""
        if scope["type"] != "http":
            return
        body = _Body(scope, receive)
        request = Request(scope, body)
        with suppress(ClientDisconnect):
            response = await self._answer(request)
            if not body.whole:
                response.headers["Connection"] = "close"
                with anyio.move_on_after(_DISCARD_SECONDS):
                    await discard(request, body, self._limits.body_bytes)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            self.metrics.count_request(response.status_code)
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            self._doors.check(request)
            methods, handler = self._routes.get(request.url.path, ((), None))
            if handler is None:
                raise ReplyError(404, "nothing is here", kind="ConfigError")
            if request.method not in methods:
                wrong = ReplyError(405, "not with this method", kind="ConfigError")
                wrong.headers["Allow"] = ", ".join(methods)
                raise wrong
            return await handler(request)
        except ReplyError as error:
            return error.response()
        except ClientDisconnect:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return ReplyError(
                500, "something unexpected happened", remedy="see the log", kind="EdgeLadderError"
            ).response()

    async def _predict(self, request: Request) -> Response:
        top = _labels(request)
        if self._uploads + self._service.use().waiting >= 2 * self._limits.waiting:
            raise busy("too many pictures are on their way")
        path = self._folder / f"{next(self._numbers)}.picture"
        self._uploads += 1
        try:
            name = await receive_picture(request, self._limits, path)
            began = time.monotonic()
            prediction = await self._ask(path, top)
            self.metrics.count_answer(time.monotonic() - began)
        finally:
            self._uploads -= 1
            path.unlink(missing_ok=True)
        if prediction.error is not None:
            raise ReplyError(
                422,
                f"this picture cannot be read: {prediction.error}",
                remedy="send a JPEG or PNG file",
            )
        asked = self.ready.asked if self.ready is not None else None
        found = to_json(Predictions(predictions=[replace(prediction, path=name)], asked=asked))
        del found["provider"]  # what runs the towers is the machine's own business
        return reply(found)

    async def _ask(self, path: Path, top: int) -> Prediction:
        try:
            return await asyncio.wrap_future(self._service.submit(str(path), top))
        except BusyError as error:
            raise busy(str(error)) from None
        except WorkerEndedError as error:
            cause = busy(f"the worker ended over this picture ({error}); another one starts", 5)
            cause.kind = "BudgetError"
            cause.remedy = "send a smaller picture, or this one again"
            raise cause from None
        except EdgeLadderError as error:  # its words name this machine's paths: they are in the log
            print(one_line(f"not answered: {error}"), file=sys.stderr, flush=True)
            raise ReplyError(
                503, "the service has ended", remedy="start it again", kind="EdgeLadderError"
            ) from None

    async def _health(self, request: Request) -> Response:
        state = self._service.use().state
        told = {"status": "ok" if state == "ready" else state, "token": self._doors.asks}
        return reply(told, 200 if state == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        text = self.metrics.text(self._service.use())
        return Response(text, headers={"Content-Type": CONTENT_TYPE})


class _Body:
    """A request's messages, and whether all of them came."""

    def __init__(self, scope: Scope, receive: Receive):
        names = {name for name, value in scope["headers"] if value != b"0"}
        self.whole = not names & {b"content-length", b"transfer-encoding"}
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        self.whole = self.whole or not message.get("more_body", False)
        return message


def _static(name: str) -> Handler:
    content = (_PAGE / name).read_bytes()
    kind = f"{_TYPES[Path(name).suffix]}; charset=utf-8"

    async def answer(request: Request) -> Response:
        return Response(content, headers={"Content-Type": kind})

    return answer


def _labels(request: Request) -> int:
    """The `top` of a request: 1 to 1000."""
    text = request.query_params.get("top", "1")
    known = text.isascii() and text.isdigit() and len(text) < 10
    if not known or not 1 <= int(text) <= _MOST_LABELS:
        raise ReplyError(400, f"top is a number from 1 to {_MOST_LABELS}", kind="ConfigError")
    return int(text)
