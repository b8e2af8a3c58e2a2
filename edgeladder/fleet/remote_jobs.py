"""Jobs on boxes: start once, watch, stop. The box keeps them; the controller may come and go."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgeladder.core.errors import ConfigError
from edgeladder.fleet.account import Account, HostError, HostResult, failed
from edgeladder.fleet.crew import Crew
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.transport import Box


@dataclass(frozen=True)
class Job:
    """A command for a box; `{root}` and `{job}` in it are the box's folders."""

    id: str
    command: list[str]
    resume: list[str] | None = None  # for a later attempt, where `resume_if` exists
    resume_if: str = "run/config.yaml"  # the run has begun
    requires: list[str] = field(default_factory=list)  # paths that must be on the box
    otherwise: str | None = None  # the remedy when one is not
    supersede: int | None = None  # an attempt whose outcome is not wanted: begin afresh


@dataclass(frozen=True)
class TrainOptions:
    """What `edgeladder train` is told on every box; a host's own device and budget are added."""

    bundle_digest: str
    profile: str | None = None
    shots: int | None = None
    seed: int | None = None
    engine: str | None = None
    overrides: tuple[str, ...] = ()
    adapter_digest: str | None = None  # start from this pushed adapter, not from the bundle's

    @property
    def bundle(self) -> str:
        """The bundle's folder on a box, by digest: a later push does not change it."""
        return f"{{root}}/trees/bundle/{self.bundle_digest}"

    @property
    def adapter(self) -> str | None:
        """The starting adapter's folder on a box."""
        return f"{{root}}/trees/adapter/{self.adapter_digest}" if self.adapter_digest else None

    def job_id(self) -> str:
        """A name that is the same for the same training, so that asking twice starts it once."""
        text = json.dumps([getattr(self, name) for name in self.__dataclass_fields__])
        return "train-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def train_job(host: Host, options: TrainOptions, job: str | None = None) -> Job:
    """The training job of one host."""
    arguments: list[str] = ["--json", "--bundle", options.bundle, "--data", host.data]
    arguments += ["--cache", "{root}/cache"]
    said = {
        "--device": host.device,
        "--budget": host.budget,
        "--profile": options.profile,
        "--shots": options.shots,
        "--seed": options.seed,
        "--engine": options.engine,
        "--start": options.adapter,
    }
    for name, value in said.items():
        if value is not None:
            arguments += [name, str(value)]
    for assignment in options.overrides:
        arguments += ["--set", assignment]
    train = [host.program, "train", *arguments]
    return Job(
        job or options.job_id(),
        [*train, "--run", "{job}/run"],
        resume=[*train, "--resume", "{job}/run"],
        requires=[host.program, *([options.adapter] if options.adapter else []), options.bundle],
        otherwise="`edgeladder fleet install` and `edgeladder fleet push` bring it",
    )


def evaluate_job(host: Host, bundle_digest: str, adapter_digest: str) -> Job:
    """Evaluate a pushed adapter on the box's own test pictures."""
    bundle = f"{{root}}/trees/bundle/{bundle_digest}"
    adapter = f"{{root}}/trees/adapter/{adapter_digest}"
    command = [host.program, "evaluate", "--json", "--bundle", bundle, "--run", adapter]
    command += ["--data", host.data, "--cache", "{root}/cache"]
    return Job(
        f"evaluate-{bundle_digest[:6]}-{adapter_digest[:12]}",
        command,
        requires=[host.program, adapter, bundle],
        otherwise="`edgeladder fleet install` and `edgeladder fleet push` bring it",
    )


async def start(box: Box, job: Job) -> HostResult:
    """Start a job on one box; where it runs or is done already, nothing happens.

    Raises:
        HostError: the box lacks what the job needs, or knows the id for another command.
    """
    answer = await box.call(
        "start",
        job=job.id,
        command=job.command,
        resume=job.resume,
        resume_if=job.resume_if,
        requires=job.requires,
        otherwise=job.otherwise,
        supersede=job.supersede,
    )
    facts = {"job": job.id, "job_state": answer["state"], "attempts": answer["attempts"]}
    return HostResult(box.host.name, "done" if answer["started_now"] else "unchanged", facts)


async def start_again(box: Box, job: Job) -> HostResult:
    """Start a job afresh even where it is done; a running one is left alone."""
    answer = await box.call("status", job=job.id)
    return await start(box, dataclasses.replace(job, supersede=answer["attempts"]))


async def stop(box: Box, job: str, *, grace_seconds: float = 30.0) -> HostResult:
    """Stop a job on one box; it writes a checkpoint first, if it does so within the grace."""
    answer = await box.call(
        "stop", job=job, grace_seconds=grace_seconds, timeout_seconds=grace_seconds + 30
    )
    if answer["state"] == "absent":
        raise HostError(f"no job {job} here", kind="refused", where=box.host.name)
    facts = {"job": job, "job_state": answer["state"], "killed": answer.get("killed", False)}
    return HostResult(box.host.name, "done" if answer["stopped_now"] else "unchanged", facts)


@dataclass
class Progress:
    """What is known of a job on one host."""

    host: str
    state: str = "unknown"  # the box's word, or `unreachable`
    exit_code: int | None = None
    attempts: int = 0
    offset: int = 0  # read so far of the followed file
    latest: dict[str, Any] = field(default_factory=dict)  # merged last values of metrics.jsonl
    lines: list[str] = field(default_factory=list)  # new since the last look
    silent_since: float | None = None  # monotonic; when it became unreachable
    error: dict[str, str | None] | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ("done", "failed", "stopped", "absent")

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "job_state": self.state,
            "exit_code": self.exit_code,
            "attempts": self.attempts,
            "offset": self.offset,
            "latest": self.latest,
        }


async def look(
    crew: Crew, job: str, known: dict[str, Progress], *, follow: str = "run/metrics.jsonl"
) -> Account:
    """Ask every host once how the job goes, and read on in its followed file."""

    async def ask(box: Box) -> HostResult:
        progress = known.setdefault(box.host.name, Progress(box.host.name))
        answer = await box.call("status", job=job, follow=follow, offset=progress.offset)
        _update(progress, answer, follow)
        state = "failed" if progress.state in ("failed", "lost", "absent") else "done"
        result = HostResult(box.host.name, state, progress.facts())  # type: ignore[arg-type]
        if progress.state == "running":
            result.state = "running"
        if state == "failed":
            result.error = _job_error(job, progress).to_dict()
        return result

    account = await crew.each("status", ask)
    for result in account.results:
        progress = known.setdefault(result.host, Progress(result.host))
        progress.error = result.error
        if "job_state" not in result.facts:
            progress.state = "unreachable"
            progress.silent_since = progress.silent_since or time.monotonic()
            progress.lines = []
    return account


def _update(progress: Progress, answer: dict[str, Any], follow: str) -> None:
    progress.state = str(answer["state"])
    progress.exit_code = answer["exit_code"]
    progress.attempts = answer["attempts"]
    progress.offset = answer["offset"]
    progress.lines = [str(line) for line in answer["lines"]]
    progress.silent_since = None
    if follow.endswith(".jsonl"):
        for line in progress.lines:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                progress.latest.update(
                    {k: v for k, v in values.items() if isinstance(v, (int, float, str))}
                )


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


async def wait(
    crew: Crew,
    jobs: dict[str, Job],
    *,
    poll_seconds: float = 5.0,
    patience_seconds: float = 600.0,
    restarts: int = 3,
    watch: Callable[[dict[str, Progress]], None] = lambda known: None,
) -> Account:
    """Start the jobs where needed and wait until each is settled.

    A job whose processes are gone (the box rebooted) is started again, from its last checkpoint;
    a box that cannot be reached is waited for.

    Args:
        crew: its hosts are the keys of `jobs`.
        jobs: host name -> its job; all of one id.
        patience_seconds: how long a box may be unreachable.
        restarts: of a lost job on one host, in this call.
    """
    job = next(iter(jobs.values())).id
    async with crew.lasting():
        begun = await crew.each("train", lambda box: start(box, jobs[box.host.name]))
        results = {result.host: result for result in begun.results}
        fixed = {name for name, result in results.items() if _final(result)}
        known = {host.name: Progress(host.name) for host in crew.hosts}
        lost: dict[str, int] = {}
        while open_hosts := [host for host in crew.hosts if host.name not in fixed]:
            await look(dataclasses.replace(crew, hosts=open_hosts, tries=1), job, known)
            watch(known)
            again = []
            for host in open_hosts:
                progress = known[host.name]
                gone = progress.state in ("lost", "absent")
                if gone and lost.get(host.name, 0) < restarts:
                    lost[host.name] = lost.get(host.name, 0) + 1
                    again.append(host)
                elif progress.settled or gone or _gave_up(progress, patience_seconds):
                    fixed.add(host.name)
                    results[host.name] = _ended(job, progress, results[host.name])
            if again:
                part = dataclasses.replace(crew, hosts=again)
                await part.each("train", lambda box: start(box, jobs[box.host.name]))
            elif len(fixed) < len(crew.hosts):
                await asyncio.sleep(poll_seconds)
    return Account("train", [results[host.name] for host in crew.hosts], {"job": job})


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


def require_job(job: str | None, options: TrainOptions | None) -> str:
    """The job id given, or the one that follows from the options.

    Raises:
        ConfigError: neither is there.
    """
    if job is not None:
        return job
    if options is None:
        raise ConfigError("which job?", remedy="name it with --job, as `fleet train` printed it")
    return options.job_id()
