"""Jobs on boxes: start once, watch, stop. The box keeps them; the controller may come and go."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeladder.fleet.box.records import (
    EvaluateTask,
    StartAnswer,
    StartRequest,
    StatusAnswer,
    StatusRequest,
    StopAnswer,
    StopRequest,
    TrainOptions,
    TrainTask,
)
from edgeladder.fleet.host_pool import HostPool
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.outcomes import FleetOutcome, HostError, HostResult, failed
from edgeladder.fleet.transport import Box

if TYPE_CHECKING:
    from edgeladder.fleet.box.records import Task


_MOST_METRICS = 64  # kept of a job's newest values
_LONGEST_METRIC = 200  # characters
_LARGEST = 2.0**63


@dataclass(frozen=True)
class Job:
    """A task for a box under a name, so that asking twice starts it once."""

    id: str
    task: Task
    supersede: int | None = None  # an attempt whose outcome is not wanted: begin afresh


@dataclass(frozen=True)
class Waiting:
    """How the controller waits for jobs."""

    poll_seconds: float = 5.0
    patience_seconds: float = 600.0  # for a box that cannot be reached
    restarts: int = 3  # of a lost job on one host, in one call
    watch: Callable[[dict[str, Progress]], None] = lambda known: None


def train_id(options: TrainOptions) -> str:
    """A name that is the same for the same training."""
    text = json.dumps([getattr(options, item.name) for item in dataclasses.fields(options)])
    return "train-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def train_job(host: Host, options: TrainOptions, job: str | None = None) -> Job:
    """The training job of one host, whose own device and budget are added."""
    budget = None if host.budget is None else str(host.budget)
    task = TrainTask(host.program, host.data, options, host.device, budget, host.trusted_keys)
    return Job(job or train_id(options), task)


def evaluate_job(host: Host, bundle_digest: str, adapter_digest: str) -> Job:
    """Evaluate a pushed adapter on the box's own test pictures; digests are of what was pushed."""
    return Job(
        f"evaluate-{bundle_digest[:6]}-{adapter_digest[:12]}",
        EvaluateTask(host.program, host.data, bundle_digest, adapter_digest, host.trusted_keys),
    )


async def start(box: Box, job: Job) -> HostResult:
    """Start a job on one box; where it runs or is done already, nothing happens.

    Raises:
        HostError: the box lacks what the job needs, or knows the id for another command.
    """
    answer = await box.call(StartRequest(job.id, job.task, job.supersede), StartAnswer)
    state = answer.job
    facts: dict[str, object] = {"job": job.id, "job_state": state.state, "attempts": state.attempts}
    return HostResult(box.host.name, "done" if answer.started_now else "unchanged", facts)


async def start_again(box: Box, job: Job) -> HostResult:
    """Start a job afresh even where it is done; a running one is left alone."""
    answer = await box.call(StatusRequest(job.id), StatusAnswer)
    return await start(box, dataclasses.replace(job, supersede=answer.job.attempts))


async def stop(box: Box, job: str, *, grace_seconds: float = 30.0) -> HostResult:
    """Stop a job on one box; it writes a checkpoint first, if it does so within the grace."""
    request = StopRequest(job, grace_seconds)
    answer = await box.call(request, StopAnswer, timeout_seconds=grace_seconds + 30)
    if answer.job.state == "absent":
        raise HostError(f"no job {job} here", kind="refused", where=box.host.name)
    facts: dict[str, object] = {"job": job, "job_state": answer.job.state, "killed": answer.killed}
    return HostResult(box.host.name, "done" if answer.stopped_now else "unchanged", facts)


@dataclass
class Progress:
    """What is known of a job on one host."""

    host: str
    state: str = "unknown"  # the box's word, or `unreachable`
    exit_code: int | None = None
    attempts: int = 0
    offset: int = 0  # read so far of the followed file
    # merged last values of metrics.jsonl
    latest: dict[str, int | float | str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # new since the last look
    silent_since: float | None = None  # monotonic; when it became unreachable
    error: dict[str, str | None] | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ("done", "failed", "stopped", "absent")

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "job_state": self.state,
            "exit_code": self.exit_code,
            "attempts": self.attempts,
            "offset": self.offset,
            "latest": self.latest,
        }


async def look(
    pool: HostPool, job: str, known: dict[str, Progress], *, follow: str = "run/metrics.jsonl"
) -> FleetOutcome:
    """Ask every host once how the job goes, and read on in its followed file."""

    async def ask(box: Box) -> HostResult:
        progress = known.setdefault(box.host.name, Progress(box.host.name))
        request = StatusRequest(job, follow, progress.offset)
        _update(progress, await box.call(request, StatusAnswer), follow)
        result = HostResult(box.host.name, "done", progress.facts())
        if progress.state == "running":
            result.state = "running"
        elif progress.state in ("failed", "lost", "absent"):
            result.state, result.error = "failed", _job_error(job, progress).to_dict()
        return result

    outcome = await pool.each("status", ask)
    for result in outcome.results:
        progress = known.setdefault(result.host, Progress(result.host))
        progress.error = result.error
        if "job_state" not in result.facts:
            progress.state = "unreachable"
            progress.silent_since = progress.silent_since or time.monotonic()
            progress.lines = []
    return outcome


def _update(progress: Progress, answer: StatusAnswer, follow: str) -> None:
    progress.state = answer.job.state
    progress.exit_code = answer.job.exit_code
    progress.attempts = answer.job.attempts
    progress.offset = answer.offset
    progress.lines = list(answer.lines)
    progress.silent_since = None
    if follow.endswith(".jsonl"):
        for line in progress.lines:
            _take_metrics(progress.latest, line)


def _take_metrics(latest: dict[str, int | float | str], line: str) -> None:
    """Merge a line's values; a box may write what it likes and fills no memory by it."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return
    for key, value in values.items() if isinstance(values, dict) else ():
        room = key in latest or (len(latest) < _MOST_METRICS and len(key) <= _LONGEST_METRIC)
        if isinstance(value, str) and room:
            latest[key] = value[:_LONGEST_METRIC]
        elif isinstance(value, (int, float)) and room and abs(value) < _LARGEST:
            latest[key] = value


def _job_error(job: str, progress: Progress) -> HostError:
    said = {
        "lost": "its processes are gone (a reboot?)",
        "absent": "was never started here",
        "stopped": "was stopped",
    }.get(progress.state, f"ended with exit code {progress.exit_code}")
    return HostError(
        f"job {job} {said}",
        kind="job",
        where=progress.host,
        remedy=f"`edgeladder fleet logs --job {job} --limit {progress.host}` shows why; the same "
        "start command goes on from its last checkpoint",
    )


async def wait(pool: HostPool, jobs: dict[str, Job], waiting: Waiting) -> FleetOutcome:
    """Start the jobs where needed and wait until each is settled.

    A job whose processes are gone (the box rebooted) is started again, from its last checkpoint;
    a box that cannot be reached is waited for.

    Args:
        pool: its hosts are the keys of `jobs`.
        jobs: host name -> its job; all of one id.
        waiting: for how long, and who is told.
    """
    job = next(iter(jobs.values())).id
    async with pool.lasting():
        begun = await pool.each("train", lambda box: start(box, jobs[box.host.name]))
        results = {result.host: result for result in begun.results}
        fixed = {name for name, result in results.items() if _final(result)}
        known = {host.name: Progress(host.name) for host in pool.hosts}
        lost: dict[str, int] = {}
        while open_hosts := [host for host in pool.hosts if host.name not in fixed]:
            await look(dataclasses.replace(pool, hosts=open_hosts, tries=1), job, known)
            waiting.watch(known)
            again = []
            for host in open_hosts:
                progress = known[host.name]
                gone = progress.state in ("lost", "absent")
                if gone and lost.get(host.name, 0) < waiting.restarts:
                    lost[host.name] = lost.get(host.name, 0) + 1
                    again.append(host)
                elif progress.settled or gone or _gave_up(progress, waiting.patience_seconds):
                    fixed.add(host.name)
                    results[host.name] = _ended(job, progress, results[host.name])
            if again:
                part = dataclasses.replace(pool, hosts=again)
                await part.each("train", lambda box: start(box, jobs[box.host.name]))
            elif len(fixed) < len(pool.hosts):
                await asyncio.sleep(waiting.poll_seconds)
    return FleetOutcome("train", [results[host.name] for host in pool.hosts], {"job": job})


def _final(result: HostResult) -> bool:
    """Whether a failed start is not worth waiting for: anything but a connection's trouble."""
    retryable = {"unreachable", "timeout", "lost"}
    return result.error is not None and result.error.get("kind") not in retryable


def _gave_up(progress: Progress, patience_seconds: float) -> bool:
    if progress.state != "unreachable" or progress.silent_since is None:
        return False
    kind = (progress.error or {}).get("kind")
    hopeless = kind in ("unpinned", "hostkey", "login")
    return hopeless or time.monotonic() - progress.silent_since > patience_seconds


def _ended(job: str, progress: Progress, begun: HostResult) -> HostResult:
    facts = {"job": job, **progress.facts()}
    if progress.state == "done":
        was_done = begun.state == "unchanged" and begun.facts.get("job_state") == "done"
        return HostResult(progress.host, "unchanged" if was_done else "done", facts)
    result = failed(progress.host, _job_error(job, progress))
    if progress.state == "unreachable":
        result.error = progress.error
    result.facts = facts
    return result
