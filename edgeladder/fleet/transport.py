"""SSH to one box: connect with a pinned key, send the agent and one request, read the answer.

Every call carries the agent's own source (a few kilobytes), so that a box needs a Python and
nothing of ours, and never an old version of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import shlex
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from edgeladder.errors import ConfigError, EdgeLadderError
from edgeladder.fleet.account import HostError
from edgeladder.fleet.inventory import Host, Inventory, jump_host
from edgeladder.fleet.trust import Pins, changed_error, offered_key

ANSWER_LIMIT_BYTES = 8 << 20  # of one answer's line: a box may not fill the controller's memory
BLOCK_BYTES = 1 << 17
KEPT_CONNECTIONS = 64  # a look every few seconds need not shake hands anew; bounds memory
_COMPLAINT_BYTES = 2048

_BOOTSTRAP = (
    "import sys,zlib;b=sys.stdin.buffer;"
    "exec(compile(zlib.decompress(b.read(int(b.readline()))),'agent','exec'))"
)

# Makes the agent's modules importable by their own names on a box that has no edgeladder.
_LOADER = """
import sys, types
for _name in ("edgeladder", "edgeladder.fleet", "edgeladder.fleet.box"):
    _module = types.ModuleType(_name)
    _module.__path__ = []
    sys.modules[_name] = _module
for _name, _source in {modules!r}:
    _module = types.ModuleType(_name)
    sys.modules[_name] = _module
    setattr(sys.modules["edgeladder.fleet.box"], _name.rpartition(".")[2], _module)
    exec(compile(_source, _name, "exec"), _module.__dict__)
sys.modules["edgeladder.fleet.box.serve"].main()
"""


def asyncssh() -> Any:
    """The asyncssh module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("asyncssh")
    except ImportError as error:
        raise ConfigError(
            "the fleet commands need asyncssh", remedy="pip install 'edgeladder[fleet]'"
        ) from error


@functools.cache
def agent() -> bytes:
    """The agent's compressed program, with its length in front."""
    folder = Path(__file__).parent / "box"
    modules = [
        (f"edgeladder.fleet.box.{name}", (folder / f"{name}.py").read_text(encoding="utf-8"))
        for name in ("store", "jobs", "probe", "prune", "serve")  # in the order of their imports
    ]
    program = zlib.compress(_LOADER.replace("{modules!r}", repr(modules)).encode(), 9)
    return f"{len(program)}\n".encode() + program


@contextlib.contextmanager
def connection_errors(host: Host) -> Iterator[None]:
    """Name what went wrong on the way to a box, without anything secret.

    Raises:
        HostError: for each of asyncssh's and the system's ways to fail.
    """
    ssh = asyncssh()
    where = f"{host.address}:{host.port}"
    try:
        yield
    except ssh.HostKeyNotVerifiable as error:
        raise HostError(f"host key refused: {error.reason}", kind="hostkey", where=where) from error
    except ssh.PermissionDenied as error:
        raise HostError(
            f"login refused for {host.user or 'this user'}",
            kind="login",
            where=where,
            remedy="add the fleet's public key to the box's authorized_keys, name its private "
            "key in the inventory or load it into ssh-agent",
        ) from error
    except (ssh.KeyImportError, ssh.KeyEncryptionError) as error:
        raise HostError(
            f"cannot use the private key: {error}",
            kind="login",
            where=host.key,
            remedy="load a key with a passphrase into ssh-agent: passphrases are never asked for",
        ) from error
    except (asyncio.TimeoutError, TimeoutError, ssh.TimeoutError) as error:
        raise HostError("no answer in time", kind="timeout", where=where) from error
    except (ssh.ConnectionLost, ssh.ChannelOpenError, BrokenPipeError, EOFError) as error:
        raise HostError("the connection broke", kind="lost", where=where) from error
    except ssh.DisconnectError as error:
        raise HostError(f"disconnected: {error.reason}", kind="lost", where=where) from error
    except FileNotFoundError as error:
        raise HostError(
            "no such private key",
            kind="login",
            where=str(error.filename),
            remedy="correct `key` in the inventory",
        ) from error
    except OSError as error:
        raise HostError(
            f"cannot connect: {error.strerror or error}", kind="unreachable", where=where
        ) from error


class Box:
    """One connected box."""

    def __init__(self, host: Host, connection: Any, timeout_seconds: float):
        self.host = host
        self.sent_bytes = 0
        self.received_bytes = 0
        self._connection = connection
        self._timeout = timeout_seconds

    async def call(
        self,
        op: str,
        *,
        payload: AsyncIterator[bytes] | None = None,
        sink: Callable[[bytes], None] | None = None,
        timeout_seconds: float | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """One request to the agent.

        Args:
            op: the agent's operation, with its `request` values.
            payload: bytes that follow the request.
            sink: takes the `size` bytes that follow the answer.
            timeout_seconds: the longest silence; None: the connection's.

        Returns:
            The agent's answer.

        Raises:
            HostError: the box is silent, the connection breaks, or the agent refuses.
        """
        timeout = timeout_seconds or self._timeout
        with connection_errors(self.host):
            process = await asyncio.wait_for(
                self._connection.create_process(
                    f"{_word(self.host.python)} -IS -c {_quote(_BOOTSTRAP)}", encoding=None
                ),
                timeout,
            )
            complaint = bytearray()
            listener = asyncio.create_task(_listen(process.stderr, complaint))
            try:
                request = {"op": op, "root": self.host.root, **request}
                program = agent() + json.dumps(request).encode() + b"\n"
                feeder = asyncio.create_task(self._feed(process, program, payload, timeout))
                try:
                    answer, rest = await self._answer(process, feeder, timeout)
                    if sink is not None and "error" not in answer:
                        await self._pour(process, rest, answer["size"], sink, timeout)
                finally:
                    feeder.cancel()
                    await asyncio.gather(feeder, return_exceptions=True)
            except _NoAnswer as error:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(listener), 2)
                raise self._no_answer(bytes(complaint), process.exit_status) from error
            finally:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)
                process.close()
        if "error" in answer:
            raise _refusal(answer["error"], self.host)
        return answer

    async def _feed(
        self, process: Any, program: bytes, payload: AsyncIterator[bytes] | None, timeout: float
    ) -> None:
        process.stdin.write(program)
        await asyncio.wait_for(process.stdin.drain(), timeout)
        if payload is not None:
            async for block in payload:
                process.stdin.write(block)
                self.sent_bytes += len(block)
                await asyncio.wait_for(process.stdin.drain(), timeout)
        process.stdin.write_eof()

    async def _answer(
        self, process: Any, feeder: asyncio.Task[None], timeout: float
    ) -> tuple[dict[str, Any], bytes]:
        """The answer's line, and what came after it in the same packet.

        While the payload is on its way the box has nothing to say yet: silence counts from its
        end. An answer that comes before (a full disk) ends the wait at once.
        """
        line = bytearray()
        while b"\n" not in line:
            read = asyncio.create_task(process.stdout.read(BLOCK_BYTES))
            try:
                while not read.done():
                    waiting = {read} if feeder.done() else {read, feeder}
                    done, _ = await asyncio.wait(
                        waiting,
                        timeout=timeout if feeder.done() else None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if not done:
                        raise asyncio.TimeoutError
                    trouble = feeder.exception() if feeder in done else None
                    if isinstance(trouble, (asyncio.TimeoutError, TimeoutError, EdgeLadderError)):
                        raise trouble
            finally:
                if not read.done():
                    read.cancel()
            block = read.result()
            if not block:
                raise _NoAnswer
            line += block
            self.received_bytes += len(block)
            if len(line) > ANSWER_LIMIT_BYTES and b"\n" not in line:
                raise HostError("the box's answer is too long", kind="integrity")
        text, _, rest = bytes(line).partition(b"\n")
        try:
            answer = json.loads(text)
            if not isinstance(answer, dict):
                raise ValueError
        except ValueError:
            raise HostError(
                "the box's answer is not the agent's",
                kind="python",
                where=self.host.name,
                remedy="its login scripts may print something: they must not for ssh commands",
            ) from None
        return answer, rest

    async def _pour(
        self, process: Any, rest: bytes, size: int, sink: Callable[[bytes], None], timeout: float
    ) -> None:
        left = size
        block = rest
        while left:
            if block:
                block = block[:left]
                sink(block)
                left -= len(block)
            if left:
                block = await asyncio.wait_for(process.stdout.read(min(left, BLOCK_BYTES)), timeout)
                self.received_bytes += len(block)
                if not block:
                    raise HostError("the connection broke", kind="lost", where=self.host.name)

    def _no_answer(self, complaint: bytes, status: int | None) -> HostError:
        text = complaint.decode("utf-8", "replace").strip().splitlines()
        if status is None and not text:
            return HostError("the connection broke", kind="lost", where=self.host.name)
        last = text[-1] if text else f"exit status {status}"
        return HostError(
            f"the agent could not run: {last}",
            kind="python",
            where=self.host.name,
            remedy=f"see that `{self.host.python} --version` works on the box, or name its "
            "interpreter as `python` in the inventory",
        )


class _NoAnswer(Exception):
    """The agent's channel ended without an answer."""


async def _listen(stream: Any, complaint: bytearray) -> None:
    while block := await stream.read(_COMPLAINT_BYTES):
        complaint.extend(block)
        del complaint[:-_COMPLAINT_BYTES]


def _word(path: str) -> str:
    """A path for the box's shell; `~/` stays for it to expand."""
    home = path.startswith("~/")
    return ("~/" if home else "") + shlex.quote(path.removeprefix("~/") if home else path)


def _quote(text: str) -> str:
    return '"' + text + '"'  # the bootstrap holds neither double quotes nor dollars


def _refusal(error: dict[str, Any], host: Host) -> HostError:
    kind = str(error.get("kind"))
    remedy = error.get("remedy")
    if kind == "disk" and remedy is None:
        remedy = "free some space on the box, or `edgeladder fleet push --prune`"
    return HostError(str(error.get("message")), kind=kind, where=host.name, remedy=remedy)


class Dialer:
    """Opens connections to the hosts of an inventory, jump hosts shared."""

    def __init__(self, inventory: Inventory, *, timeout_seconds: float = 30.0):
        self.inventory = inventory
        self.pins = Pins(inventory.known_hosts)
        self.timeout_seconds = timeout_seconds
        self.keep = False  # connections for the next piece of work on the same host
        self._kept: dict[str, Any] = {}
        self._jumps: dict[str, Any] = {}
        self._jump_locks: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def connect(self, host: Host) -> AsyncIterator[Box]:
        """A connected box, closed at the end unless connections are kept.

        Raises:
            HostError: unreachable, not pinned, another key, or the login is refused.
        """
        connection = self._kept.pop(host.name, None)
        if connection is None or connection.is_closed():
            connection = await self._open(host, await self.tunnel(host))
        well = False
        try:
            yield Box(host, connection, self.timeout_seconds)
            well = True
        finally:
            if well and self.keep and len(self._kept) < KEPT_CONNECTIONS:
                self._kept[host.name] = connection
            else:
                await _close(connection)

    async def tunnel(self, host: Host) -> Any:
        """The open connection to a host's jump host, or None."""
        if host.jump is None:
            return None
        gate = jump_host(host.jump, self.inventory, host)
        lock = self._jump_locks.setdefault(gate.name, asyncio.Lock())
        async with lock:
            connection = self._jumps.get(gate.name)
            if connection is None or connection.is_closed():
                connection = await self._open(gate, await self.tunnel(gate))
                self._jumps[gate.name] = connection
            return connection

    async def close(self) -> None:
        """Close the connections that were kept, the jump hosts' last."""
        for connections in (self._kept, self._jumps):
            await asyncio.gather(*(_close(connection) for connection in connections.values()))
            connections.clear()

    async def _open(self, host: Host, tunnel: Any) -> Any:
        ssh = asyncssh()
        keys = self.pins.keys(host)
        if not keys:
            raise HostError(
                "host key unknown",
                kind="unpinned",
                where=host.name,
                remedy=f"edgeladder fleet trust --limit {host.name}",
            )
        trusted = [ssh.import_public_key(key) for key in keys]
        options: dict[str, Any] = {}
        if host.key:
            options["client_keys"] = [str(Path(host.key).expanduser())]
        if host.user:
            options["username"] = host.user
        try:
            with connection_errors(host):
                return await asyncio.wait_for(
                    ssh.connect(
                        host.address,
                        host.port,
                        tunnel=tunnel or (),
                        config=None,  # the inventory alone says how
                        known_hosts=(trusted, [], []),
                        preferred_auth="publickey",
                        password_auth=False,
                        kbdint_auth=False,
                        connect_timeout=self.timeout_seconds,
                        login_timeout=self.timeout_seconds,
                        keepalive_interval=self.timeout_seconds / 3,
                        keepalive_count_max=3,
                        **options,
                    ),
                    self.timeout_seconds * 1.5,
                )
        except HostError as error:
            if error.kind != "hostkey":
                raise
            offer = await offered_key(host, self.pins, tunnel, timeout_seconds=self.timeout_seconds)
            raise (changed_error(offer) if offer.verdict == "changed" else error) from error


async def _close(connection: Any) -> None:
    connection.close()
    try:
        await asyncio.wait_for(connection.wait_closed(), 5)
    except asyncio.TimeoutError:
        connection.abort()


def quiet_asyncssh() -> None:
    """Keep asyncssh's own log at errors: it would print hosts and users at every connection."""
    asyncssh().set_log_level("ERROR")
