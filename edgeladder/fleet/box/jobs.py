"""Detached jobs on the box: started once by id, surviving the connection that started them.

ROOT/jobs/ID/job.json     what was asked, attempts, how it was started
             pid, exit    of the runner; `exit` appears when the command has ended
             attempt-N/   claimed by a runner with mkdir, so that no attempt runs twice
             log          the command's stderr
             result.json  the command's stdout, when it has ended
             run/         the run directory of `edgeladder train`
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING

from edgeladder.fleet.box.commands import command_of, fill
from edgeladder.fleet.box.records import (
    FileRecord,
    JobFile,
    JobState,
    OutputsAnswer,
    OutputsRequest,
    SendAnswer,
    SendRequest,
    StartAnswer,
    StartRequest,
    StatusAnswer,
    StatusRequest,
    StopAnswer,
    StopRequest,
    from_json,
    to_json,
)
from edgeladder.fleet.box.store import BLOCK_BYTES, Refused, hash_file

if TYPE_CHECKING:
    from io import BufferedReader, BufferedWriter

# All that ever leaves a box, besides the probe's facts and the log: adapters and records. Pages do
# not: the controller writes its own, so that no script or picture of a box is opened there.
PULLABLE = (
    "run/adapter.safetensors",
    "run/adapter.json",
    "run/metrics.jsonl",
    "run/plan.json",
    "run/environment.json",
    "run/config.yaml",
    "result.json",
)
FOLLOWED = ("run/metrics.jsonl", "log")
BEGUN = "run/config.yaml"  # a run with it can be resumed
START_SECONDS = 20  # for the runner to write its pid

# The runner. It ignores nothing for its child (`trap :` is reset in children), outlives a TERM to
# the group to write down the exit code, and names its folder in its command line: its identity.
RUNNER = """
cd "$1" || exit 1
mkdir "attempt-$2" 2>/dev/null || exit 0
out="attempt-$2/stdout"
shift 2
trap : TERM INT HUP
echo $$ > pid.tmp && mv pid.tmp pid
"$@" > "$out" 2>> log < /dev/null
code=$?
cp "$out" result.tmp && mv result.tmp result.json
echo "$code" > exit.tmp && { sync exit.tmp 2>/dev/null; mv exit.tmp exit; }
"""


def job_folder(root: str, job: str) -> str:
    """Where a job lives; the name is checked, since it comes from outside."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", job):
        raise Refused(f"not a job id: {job!r}")
    return os.path.join(root, "jobs", job)


def read_text(path: str) -> str:
    """A file's text, or an empty one where there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError):
        return ""


def _write(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def runner_pid(folder: str) -> int | None:
    """The living runner's process id, or None. A reused number is told by its command line."""
    text = read_text(os.path.join(folder, "pid")).strip()
    if not text.isdigit():
        return None
    try:
        with open(f"/proc/{text}/cmdline", "rb") as stream:
            arguments = stream.read().split(b"\0")
    except OSError:
        return None
    return int(text) if os.fsencode(folder) in arguments else None


def _job_file(folder: str) -> JobFile | None:
    """A job's job.json, or None where there is none that can be read."""
    try:
        return from_json(JobFile, json.loads(read_text(os.path.join(folder, "job.json"))))
    except ValueError:
        return None


def state(root: str, job: str) -> JobState:
    """What became of a job."""
    folder = job_folder(root, job)
    record = _job_file(folder)
    if record is None:
        return JobState("absent")
    code = read_text(os.path.join(folder, "exit")).strip()
    word, exit_code = "lost", None
    if runner_pid(folder) is not None:
        word = "running"
    elif re.fullmatch(r"\d+", code):
        exit_code = int(code)
        word = "done" if code == "0" else "failed"
    if word in ("failed", "lost") and os.path.exists(os.path.join(folder, "stopped")):
        word = "stopped"
    return JobState(word, exit_code, record.attempts, record.via, record.started)


def user_systemd() -> dict[str, str] | None:
    """Environment for `systemd-run --user` where jobs under it outlive the login, else None."""
    environment = dict(os.environ)
    environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    if not shutil.which("systemd-run") or not os.path.isdir(environment["XDG_RUNTIME_DIR"]):
        return None

    def works(*command: str) -> bytes | None:
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    user = str(os.getuid())
    lingers = works("loginctl", "show-user", user, "--property=Linger") or b""
    if b"yes" not in lingers and works("loginctl", "enable-linger") is None:
        return None  # the user's manager, and every job under it, would end with the login
    if works("systemd-run", "--user", "--quiet", "--collect", "--wait", "true") is None:
        return None
    return environment


def start(root: str, request: StartRequest) -> StartAnswer:
    """Start a job unless it runs or is done; a failed, stopped or lost one gets a new attempt.

    Raises:
        Refused: the box takes no such task, lacks what it needs, or knows the job's id for another.
    """
    folder = job_folder(root, request.job)
    command = command_of(request.task, root)
    for path in command.requires:
        if not os.path.exists(fill(path, root, folder)):
            raise Refused(f"the box has no {path}", remedy=command.remedy)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = state(root, request.job)
        record = _job_file(folder) or JobFile(command.words)
        if record.command != command.words:
            raise Refused(
                f"job {request.job} was started with another command",
                remedy="choose another --job",
            )
        if before.state != "running" and request.supersede == record.attempts:
            shutil.rmtree(os.path.join(folder, "run"), ignore_errors=True)
        elif before.state in ("running", "done"):
            return StartAnswer(before, started_now=False)
        resumes = command.resume and os.path.exists(os.path.join(folder, BEGUN))
        _attempt(root, folder, record, command.resume if resumes else None)
    return StartAnswer(state(root, request.job), started_now=True)


def _attempt(root: str, folder: str, record: JobFile, resume: tuple[str, ...] | None) -> None:
    """Launch the next attempt and wait until its runner is there."""
    for name in ("exit", "pid", "stopped", "result.json"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    attempt = record.attempts + 1
    while os.path.exists(os.path.join(folder, f"attempt-{attempt}")):
        attempt += 1
    environment = user_systemd()
    via = "systemd-run" if environment else "setsid"
    begun = JobFile(record.command, attempt, time.time(), via)
    _write(os.path.join(folder, "job.json"), json.dumps(to_json(begun)))
    words = [fill(part, root, folder) for part in resume or record.command]
    _launch(folder, attempt, words, environment)
    deadline = time.monotonic() + START_SECONDS
    while not os.path.exists(os.path.join(folder, "pid")):
        if time.monotonic() > deadline:
            raise Refused("the job's runner did not start", kind="lost")
        time.sleep(0.02)


def _launch(
    folder: str, attempt: int, words: list[str], environment: dict[str, str] | None
) -> None:
    runner = ["/bin/sh", "-c", RUNNER, "edgeladder-job", folder, str(attempt)] + words
    if environment:
        unit = f"edgeladder-{hashlib.sha256(folder.encode()).hexdigest()[:12]}-{attempt}"
        runner = ["systemd-run", "--user", "--quiet", "--collect", "--unit", unit] + runner
        subprocess.run(runner, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=30)
        return
    with open(os.devnull, "r+b") as null:
        subprocess.Popen(runner, stdin=null, stdout=null, stderr=null, start_new_session=True)


def stop(root: str, request: StopRequest) -> StopAnswer:
    """Ask a running job to end (TERM to its group: a checkpoint is written), then make it."""
    folder = job_folder(root, request.job)
    pid = runner_pid(folder)
    if pid is None:
        return StopAnswer(state(root, request.job), stopped_now=False)
    _write(os.path.join(folder, "stopped"), "")
    killed = False
    os.killpg(pid, signal.SIGTERM)
    deadline = time.monotonic() + request.grace_seconds
    while runner_pid(folder) is not None:
        if time.monotonic() > deadline:
            killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
        time.sleep(0.05)
    return StopAnswer(state(root, request.job), stopped_now=True, killed=killed)


def status(root: str, request: StatusRequest) -> StatusAnswer:
    """The state of a job and what its followed file gained since `offset`, whole lines only."""
    job = state(root, request.job)
    if request.follow is None:
        return StatusAnswer(job)
    return StatusAnswer(job, *_tail(root, request.job, request.follow, request.offset))


def _tail(root: str, job: str, name: str, offset: int) -> tuple[int, tuple[str, ...]]:
    if name not in FOLLOWED:
        raise Refused(f"{name!r} is not followed")
    path = os.path.join(job_folder(root, job), name)
    try:
        with _open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            offset = offset if offset <= size else 0  # a new attempt began the file again
            stream.seek(offset)
            text = stream.read(BLOCK_BYTES)
    except FileNotFoundError:
        return 0, ()
    complete = text[: text.rfind(b"\n") + 1]
    if len(text) == BLOCK_BYTES and not complete:
        complete = text  # one line longer than a block: pass it on in pieces
    return offset + len(complete), tuple(complete.decode("utf-8", "replace").splitlines())


def _open_regular(path: str) -> BufferedReader:
    """Open a regular file and no link, not even to one: a link could lead to a picture."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (2, 20):
            raise FileNotFoundError(path) from None
        raise Refused(f"{os.path.basename(path)} is no regular file") from None
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise Refused(f"{os.path.basename(path)} is no regular file")
    return stream


def outputs(root: str, request: OutputsRequest) -> OutputsAnswer:
    """Size and hash of those of a job's files that may leave the box."""
    folder = job_folder(root, request.job)
    found = {}
    kept = []
    for name in PULLABLE:
        path = os.path.join(folder, name)
        if os.path.islink(os.path.dirname(path)):
            raise Refused(f"the run directory of job {request.job} is a link")
        with contextlib.suppress(FileNotFoundError), _open_regular(path) as stream:
            if shows_pictures(stream, name):
                kept.append(name)
                continue
            size = os.fstat(stream.fileno()).st_size
            found[name] = FileRecord(size, hash_file(path))
    return OutputsAnswer(state(root, request.job), found, tuple(kept))


def shows_pictures(stream: BufferedReader, name: str) -> bool:
    """Whether a file holds what stays here: a closed-form head's features."""
    if name.endswith(".safetensors"):
        length = min(int.from_bytes(stream.read(8), "little"), 1 << 24)
        found = b'"head:' in stream.read(length)
    else:
        found = False
    stream.seek(0)
    return found


def send(root: str, request: SendRequest, stdout: BufferedWriter) -> None:
    """One of the files that may leave, as raw bytes after the answer's line."""
    if request.name not in PULLABLE:
        raise Refused(f"{request.name!r} never leaves a box")
    path = os.path.join(job_folder(root, request.job), request.name)
    with _open_regular(path) as stream:
        if shows_pictures(stream, request.name):
            raise Refused(f"{request.name} holds what stays on the box")
        size = os.fstat(stream.fileno()).st_size
        stdout.write(json.dumps(to_json(SendAnswer(size))).encode() + b"\n")
        left = size
        while left:
            block = stream.read(min(left, BLOCK_BYTES))
            if not block:
                break
            stdout.write(block)
            left -= len(block)
