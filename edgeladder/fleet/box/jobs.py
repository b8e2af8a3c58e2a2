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

from edgeladder.fleet.box.store import (
    BLOCK_BYTES,
    Answer,
    BufferedReader,
    BufferedWriter,
    Refused,
    Request,
    hash_file,
)

# All that ever leaves a box, besides the probe's facts and the log: adapters, metrics, reports.
PULLABLE = (
    "run/adapter.safetensors",
    "run/adapter.json",
    "run/metrics.jsonl",
    "run/plan.json",
    "run/environment.json",
    "run/config.yaml",
    "run/report.html",
    "result.json",
)
FOLLOWED = ("run/metrics.jsonl", "log")
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


def state(root: str, job: str) -> Answer:
    """What became of a job: absent, running, done, failed, stopped or lost (its runner died)."""
    folder = job_folder(root, job)
    try:
        record = json.loads(read_text(os.path.join(folder, "job.json")))
    except ValueError:
        return {"state": "absent", "exit_code": None, "attempts": 0}
    code = read_text(os.path.join(folder, "exit")).strip()
    answer = {
        "state": "lost",
        "exit_code": None,
        "attempts": record["attempts"],
        "via": record["via"],
        "started": record["started"],
    }
    if runner_pid(folder) is not None:
        answer["state"] = "running"
    elif re.fullmatch(r"\d+", code):
        answer["exit_code"] = int(code)
        answer["state"] = "done" if code == "0" else "failed"
    if answer["state"] in ("failed", "lost") and os.path.exists(os.path.join(folder, "stopped")):
        answer["state"] = "stopped"
    return answer


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


def start(root: str, request: Request, stdin: BufferedReader, stdout: BufferedWriter) -> Answer:
    """Start a job unless it runs or is done; a failed, stopped or lost one gets a new attempt.

    `resume` is the command of a later attempt, taken when `resume_if` (below the job's folder)
    exists. `{root}` and `{job}` in arguments are replaced by this box's folders. `supersede` is
    the number of an attempt whose outcome is not wanted, done or not: it is begun afresh.

    Returns:
        The job's state, with `started_now`.
    """
    folder = job_folder(root, request["job"])
    for path in request.get("requires", []):
        if not os.path.exists(fill(path, root, folder)):
            raise Refused(f"the box has no {path}", remedy=request.get("otherwise"))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = state(root, request["job"])
        try:
            record = json.loads(read_text(os.path.join(folder, "job.json")))
        except ValueError:
            record = {"command": request["command"], "attempts": 0}
        if record["command"] != request["command"]:
            raise Refused(
                "job {} was started with another command".format(request["job"]),
                remedy="choose another --job",
            )
        if before["state"] != "running" and request.get("supersede") == record["attempts"]:
            shutil.rmtree(os.path.join(folder, "run"), ignore_errors=True)
        elif before["state"] in ("running", "done"):
            return dict(before, started_now=False)
        command = request["command"]
        if request.get("resume") and os.path.exists(os.path.join(folder, request["resume_if"])):
            command = request["resume"]
        for name in ("exit", "pid", "stopped", "result.json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        attempt = record["attempts"] + 1
        while os.path.exists(os.path.join(folder, f"attempt-{attempt}")):
            attempt += 1
        environment = user_systemd()
        record.update(
            attempts=attempt,
            started=time.time(),
            via="systemd-run" if environment else "setsid",
        )
        _write(os.path.join(folder, "job.json"), json.dumps(record))
        _launch(root, folder, attempt, command, environment)
        deadline = time.monotonic() + START_SECONDS
        while not os.path.exists(os.path.join(folder, "pid")):
            if time.monotonic() > deadline:
                raise Refused("the job's runner did not start", kind="lost")
            time.sleep(0.02)
    return dict(state(root, request["job"]), started_now=True)


def fill(part: str, root: str, folder: str) -> str:
    """An argument with this box's folders in it."""
    part = os.path.expanduser(part) if part.startswith("~/") else part
    return part.replace("{root}", root).replace("{job}", folder)


def _launch(
    root: str, folder: str, attempt: int, command: list[str], environment: dict[str, str] | None
) -> None:
    filled = [fill(part, root, folder) for part in command]
    runner = ["/bin/sh", "-c", RUNNER, "edgeladder-job", folder, str(attempt)] + filled
    if environment:
        unit = f"edgeladder-{hashlib.sha256(folder.encode()).hexdigest()[:12]}-{attempt}"
        runner = ["systemd-run", "--user", "--quiet", "--collect", "--unit", unit] + runner
        subprocess.run(runner, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=30)
        return
    with open(os.devnull, "r+b") as null:
        subprocess.Popen(runner, stdin=null, stdout=null, stderr=null, start_new_session=True)


def stop(root: str, request: Request, stdin: BufferedReader, stdout: BufferedWriter) -> Answer:
    """Ask a running job to end (TERM to its group: a checkpoint is written), then make it."""
    folder = job_folder(root, request["job"])
    pid = runner_pid(folder)
    if pid is None:
        return dict(state(root, request["job"]), stopped_now=False)
    _write(os.path.join(folder, "stopped"), "")
    killed = False
    os.killpg(pid, signal.SIGTERM)
    deadline = time.monotonic() + request.get("grace_seconds", 30)
    while runner_pid(folder) is not None:
        if time.monotonic() > deadline:
            killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
        time.sleep(0.05)
    return dict(state(root, request["job"]), stopped_now=True, killed=killed)


def status(root: str, request: Request, stdin: BufferedReader, stdout: BufferedWriter) -> Answer:
    """The state of a job and what its followed file gained since `offset`, whole lines only."""
    answer = state(root, request["job"])
    name = request.get("follow")
    if name is not None:
        answer.update(_tail(root, request["job"], name, request.get("offset", 0)))
    return answer


def _tail(root: str, job: str, name: str, offset: int) -> Answer:
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
        return {"offset": 0, "lines": []}
    complete = text[: text.rfind(b"\n") + 1]
    if len(text) == BLOCK_BYTES and not complete:
        complete = text  # one line longer than a block: pass it on in pieces
    lines = complete.decode("utf-8", "replace").splitlines()
    return {"offset": offset + len(complete), "lines": lines}


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


def outputs(root: str, request: Request, stdin: BufferedReader, stdout: BufferedWriter) -> Answer:
    """Size and hash of those of a job's files that may leave the box."""
    folder = job_folder(root, request["job"])
    found = {}
    kept = []
    for name in PULLABLE:
        path = os.path.join(folder, name)
        if os.path.islink(os.path.dirname(path)):
            raise Refused("the run directory of job {} is a link".format(request["job"]))
        with contextlib.suppress(FileNotFoundError), _open_regular(path) as stream:
            if shows_pictures(stream, name):
                kept.append(name)
                continue
            size = os.fstat(stream.fileno()).st_size
            found[name] = {"size": size, "sha256": hash_file(path)}
    return dict(state(root, request["job"]), files=found, kept=kept)


def shows_pictures(stream: BufferedReader, name: str) -> bool:
    """Whether a file holds what stays here: a report's pictures, a closed-form head's features."""
    if name.endswith(".html"):
        text = stream.read().lower()
        found = re.search(rb"data:image/(?!svg)|<img\b", text) is not None
    elif name.endswith(".safetensors"):
        length = min(int.from_bytes(stream.read(8), "little"), 1 << 24)
        found = b'"head:' in stream.read(length)
    else:
        found = False
    stream.seek(0)
    return found


def send(root: str, request: Request, stdin: BufferedReader, stdout: BufferedWriter) -> None:
    """One of the files that may leave, as raw bytes after the answer's line."""
    if request["name"] not in PULLABLE:
        raise Refused("{!r} never leaves a box".format(request["name"]))
    path = os.path.join(job_folder(root, request["job"]), request["name"])
    with _open_regular(path) as stream:
        if shows_pictures(stream, request["name"]):
            raise Refused(f"{request['name']} holds what stays on the box")
        size = os.fstat(stream.fileno()).st_size
        stdout.write(json.dumps({"size": size}).encode() + b"\n")
        left = size
        while left:
            block = stream.read(min(left, BLOCK_BYTES))
            if not block:
                break
            stdout.write(block)
            left -= len(block)
