"""One connected box: send the agent and one request, read the answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from edgeladder.core.errors import EdgeLadderError
from edgeladder.fleet.agent import agent, command
from edgeladder.fleet.box.records import Call, Refusal, SendAnswer, from_json, to_json
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.outcomes import HostError
from edgeladder.fleet.ssh import connection_errors

if TYPE_CHECKING:
    from edgeladder.fleet.box.records import Request

Answer = TypeVar("Answer")

ANSWER_LIMIT_BYTES = 8 << 20  # of one answer's line: a box may not fill the controller's memory
BLOCK_BYTES = 1 << 17
_COMPLAINT_BYTES = 2048
_LONGEST_WORDS = 2000  # characters of a box's reasons, which are shown and kept
_SILENCES = 10  # for a whole call, besides what its bytes take at the slowest rate
_SLOWEST_BYTES_PER_SECOND = 2048.0


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
        request: Request,
        kind: type[Answer],
        *,
        payload: AsyncIterator[bytes] | None = None,
        sink: Callable[[bytes], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """One request to the agent.

        Args:
            request: what is asked.
            kind: the record that answers it.
            payload: bytes that follow the request.
            sink: takes the bytes that a `SendAnswer` announces.
            timeout_seconds: the longest silence; None: the connection's. The whole call may take
                ten of them, and a second more for every 2 kB that came or went.

        Raises:
            HostError: the box is silent or too slow, the connection breaks, or the agent refuses.
        """
        clock = _Clock(timeout_seconds or self._timeout)
        with connection_errors(self.host):
            process = await asyncio.wait_for(
                self._connection.create_process(command(self.host.python), encoding=None),
                clock.left(),
            )
            complaint = bytearray()
            listener = asyncio.create_task(_listen(process.stderr, complaint))
            try:
                line = json.dumps(to_json(Call(self.host.root, request))).encode() + b"\n"
                feeder = asyncio.create_task(self._feed(process, agent() + line, payload, clock))
                try:
                    values, rest = await self._values(process, feeder, clock)
                    answer = _answer(kind, values, self.host)
                    if sink is not None and isinstance(answer, SendAnswer):
                        await self._pour(process, rest, answer.size, sink, clock)
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
        return answer

    async def _feed(
        self, process: Any, program: bytes, payload: AsyncIterator[bytes] | None, clock: _Clock
    ) -> None:
        process.stdin.write(program)
        await asyncio.wait_for(process.stdin.drain(), clock.left(len(program)))
        if payload is not None:
            async for block in payload:
                process.stdin.write(block)
                self.sent_bytes += len(block)
                await asyncio.wait_for(process.stdin.drain(), clock.left(len(block)))
        process.stdin.write_eof()

    async def _values(
        self, process: Any, feeder: asyncio.Task[None], clock: _Clock
    ) -> tuple[dict[str, object], bytes]:
        """The values of the answer's line, and what came after it in the same packet.

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
                        timeout=clock.left() if feeder.done() else None,
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
            clock.grant(len(block))
            if len(line) > ANSWER_LIMIT_BYTES and b"\n" not in line:
                raise HostError("the box's answer is too long", kind="integrity")
        text, _, rest = bytes(line).partition(b"\n")
        return read_line(text, self.host), rest

    async def _pour(
        self, process: Any, rest: bytes, size: int, sink: Callable[[bytes], None], clock: _Clock
    ) -> None:
        left = size
        block = rest
        while left:
            if block:
                block = block[:left]
                sink(block)
                left -= len(block)
            if left:
                read = process.stdout.read(min(left, BLOCK_BYTES))
                block = await asyncio.wait_for(read, clock.left())
                self.received_bytes += len(block)
                clock.grant(len(block))
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


class _Clock:
    """How long a call may still take: a box that drips a byte now and then ends as well."""

    def __init__(self, silence_seconds: float):
        self._silence = silence_seconds
        self._end = time.monotonic() + _SILENCES * silence_seconds

    def grant(self, size: int) -> None:
        """Bytes came or went: they may have taken their time."""
        self._end += size / _SLOWEST_BYTES_PER_SECOND

    def left(self, size: int = 0) -> float:
        """Seconds to wait for the next sign of life, `size` bytes being on their way.

        Raises:
            HostError: the call's whole time is over.
        """
        self.grant(size)
        left = self._end - time.monotonic()
        if left <= 0:
            raise HostError(
                "the box answers too slowly to ever end",
                kind="timeout",
                remedy="see its load and its network, or give a longer --timeout",
            )
        return min(self._silence, left)


class _NoAnswer(Exception):
    """The agent's channel ended without an answer."""


async def _listen(stream: Any, complaint: bytearray) -> None:
    while block := await stream.read(_COMPLAINT_BYTES):
        complaint.extend(block)
        del complaint[:-_COMPLAINT_BYTES]


def read_line(text: bytes, host: Host) -> dict[str, object]:
    """The values of an answer's line.

    Raises:
        HostError: it is no JSON object, or nested deeper than one of ours.
    """
    try:
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise HostError(
            "the box's answer is not the agent's",
            kind="python",
            where=host.name,
            remedy="its login scripts may print something: they must not for ssh commands",
        ) from None
    return answer


def _answer(kind: type[Answer], values: dict[str, object], host: Host) -> Answer:
    """The answer's record.

    Raises:
        HostError: the agent refused, or this is no such answer.
    """
    try:
        if values.get("is") != Refusal.__name__:
            return from_json(kind, values)
        refusal = from_json(Refusal, values)
    except (ValueError, RecursionError) as error:
        raise HostError(
            f"the box's answer is not the agent's: {str(error)[:_LONGEST_WORDS]}",
            kind="integrity",
            where=host.name,
        ) from None
    remedy = refusal.remedy
    if refusal.kind == "disk" and remedy is None:
        remedy = "free some space on the box, or `edgeladder fleet push --prune`"
    message, remedy = refusal.message[:_LONGEST_WORDS], remedy and remedy[:_LONGEST_WORDS]
    raise HostError(message, kind=refusal.kind[:_LONGEST_WORDS], where=host.name, remedy=remedy)
