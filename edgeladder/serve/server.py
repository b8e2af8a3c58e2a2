"""The process of `edgeladder serve`: uvicorn around the application, signals, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeladder.core.errors import ConfigError, Interrupted
from edgeladder.core.inference import InferenceRequest
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.plain_files import NotPlainError, open_plain
from edgeladder.jobs.service import Service
from edgeladder.serve.application import Application
from edgeladder.serve.doors import Doors
from edgeladder.serve.settings import Address, Limits
from edgeladder.serve.signals import Signals
from edgeladder.serve.working_folder import working_folder

RESERVE_BYTES = 16_000_000  # of the budget: what connections and uploads hold at their most
_HEAD_BYTES = 16_384
_IDLE_SECONDS = 15  # of a connection between two requests
_LATE_BODY = (
    b'{"error": {"type": "DataError", "message": "the request did not come whole in time", '
    b'"where": null, "remedy": null}}'
)
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_LATE_BODY), _LATE_BODY)
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a service did until it was told to end."""

    requests: dict[str, int]  # by status
    answered: int  # pictures
    restarts: int  # of the worker
    memory: MemoryResult


def serve(
    request: InferenceRequest,
    address: Address,
    limits: Limits,
    token: str | None,
    log: Callable[[str], None],
) -> Served:
    """Answer until SIGTERM; what was asked before is answered yet.

    Raises:
        ConfigError: the address cannot be had; also as `Service.start`.
        Interrupted: Ctrl-C.
    """
    listener = bind(address)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        signals = stack.enter_context(Signals())
        folder = stack.enter_context(working_folder("serve"))
        service = Service(
            request,
            most_waiting=limits.waiting,
            picture_seconds=limits.picture_seconds,
            reserve_bytes=RESERVE_BYTES,
            log=log,
        )
        stack.callback(service.close)
        application = Application(service, Doors(address, token), limits, folder)
        server = _Server(_config(application, address, limits))
        signals.then = lambda number: _stop(number, server, service)
        with contextlib.suppress(Interrupted):  # before it was ready: nobody waits for an answer
            application.ready = service.start()
            # who reads the next line may come before the loop runs
            listener.listen(server.config.backlog)
            log(f"listening on {url(listener, address)}")
            asyncio.run(server.serve(sockets=[listener]))
        service.close(limits.drain_seconds)
        signals.raise_interrupt()
        use = service.use()
        return Served(
            requests=application.metrics.totals(),
            answered=use.answered,
            restarts=use.restarts,
            memory=service.memory(),
        )


def bind(address: Address) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: no such address here, or the port is taken.
    """
    where = f"{address.host}:{address.port}"
    listener = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio turns Nagle's algorithm off only where the protocol is named; with it, half of an
        # answer waits 40 ms for the client's delayed acknowledgement
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except (OSError, OverflowError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        said = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen there: {said}", where=where, remedy="name another --host or --port"
        ) from error
    return listener


def url(listener: socket.socket, address: Address) -> str:
    """Where the service is found by people; of all addresses the one that others reach."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - shown, not bound
        host = _outward_address()
    return f"{address.scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def _outward_address() -> str:
    """This machine's address in its network; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation (RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _config(application: Application, address: Address, limits: Limits) -> uvicorn.Config:
    _Protocol.head_seconds, _Protocol.most = limits.head_seconds, 2 * limits.connections
    try:
        for path in filter(None, (address.certificate, address.key)):
            open_plain(path).close()  # the TLS library would wait for a pipe
        config = uvicorn.Config(
            application,
            http=_Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # who asks is the peer, whatever a header says
            server_header=False,
            limit_concurrency=limits.connections,
            backlog=2 * limits.connections,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=max(1, int(limits.drain_seconds)),
            h11_max_incomplete_event_size=_HEAD_BYTES,
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
        )
        config.load()
    except (OSError, NotPlainError) as error:  # ssl's errors are of the first kind
        raise ConfigError(
            "the certificate or its key cannot be used: "
            f"{getattr(error, 'strerror', None) or error}",
            where=address.certificate,
            remedy="name PEM files with --certificate and --key",
        ) from error
    return config


def _stop(number: int, server: _Server, service: Service) -> None:
    """After a signal: stop accepting; a second Ctrl-C waits for nobody."""
    if server.should_exit and number == signal.SIGINT:
        server.force_exit = True
    server.should_exit = True
    if not server.started:
        service.stop_soon()


class _Server(uvicorn.Server):
    """uvicorn's, which leaves signals to us: it would raise them again, and end by them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """HTTP/1.1 with a time limit on a request's head, which uvicorn has not.

    One timer runs while a connection is between requests or in the head of one; bytes that trickle
    in do not set it back.
    """

    head_seconds = 10.0
    most = 128  # connections; more are closed as they come
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _is_between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._is_between():
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._late)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._is_between() and not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()
