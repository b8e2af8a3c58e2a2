"""Two hundred simulated boxes in one process, one controller: wall time, its memory, its bounds.

    python tools/fleet/prove_scale.py [--boxes 200] [--parallel 16]

The boxes are 200 SSH servers of one asyncssh process. They run the fleet's own agent in that
process and pretend the training (tools/fleet/stand_in.py), so what is measured is the controller:
`edgeladder fleet rounds 1` in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any, cast

import asyncssh
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tree, not what is installed

from edgeladder.fleet.box import commands, jobs, records, serve  # noqa: E402
from tools.fleet import stand_in  # noqa: E402
from tools.fleet.farm import free_port  # noqa: E402
from tools.fleet.tiny_bundle import write_bundle  # noqa: E402

MEMORY_LIMIT_BYTES = 150_000_000


class World:
    """All boxes, and how many are busy at once."""

    def __init__(self) -> None:
        self.connections = self.most_connections = 0
        self.requests = self.most_requests = 0
        self.total_connections = 0

    def server(self) -> asyncssh.SSHServer:
        """One connection's server: anybody may log in, on loopback."""
        world = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, connection: Any) -> None:
                world.connections += 1
                world.total_connections += 1
                world.most_connections = max(world.most_connections, world.connections)

            def connection_lost(self, error: Exception | None) -> None:
                world.connections -= 1

            def begin_auth(self, username: str) -> bool:
                return False

        return Server()

    async def handle(self, process: Any) -> None:
        """One call of the agent, in this process."""
        self.requests += 1
        self.most_requests = max(self.most_requests, self.requests)
        try:
            stream = io.BytesIO(await process.stdin.read())
            stream.read(int(stream.readline()))  # the agent's source, which is here already
            line = stream.readline()
            call = records.from_json(records.Call, json.loads(line))
            out = io.BytesIO()
            if isinstance(call.request, records.StartRequest):
                await asyncio.to_thread(pretend, call.root, call.request)
            await asyncio.to_thread(serve.answer, line, cast(Any, stream), cast(Any, out))
            process.stdout.write(out.getvalue())
            await process.stdout.drain()
            process.exit(0)
        finally:
            self.requests -= 1


def pretend(root: str, request: records.StartRequest) -> None:
    """Do at once what the job would do; the agent then finds it done."""
    folder = Path(jobs.job_folder(root, request.job))
    if (folder / "job.json").exists():
        return
    folder.mkdir(parents=True)
    command = commands.command_of(request.task, root).words
    words = [commands.fill(part, root, str(folder)) for part in command[2:]]
    values = dict(zip(words[1::2], words[2::2], strict=True))  # after --json
    arguments = argparse.Namespace(
        run=values["--run"], resume=None, bundle=values["--bundle"], start=None
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        stand_in.train(arguments, {**stand_in.DEFAULTS, "steps": 2, "step_seconds": 0.0})
    (folder / "result.json").write_text(out.getvalue())
    (folder / "exit").write_text("0")
    record = records.JobFile(command, 1, time.time(), "none")
    (folder / "job.json").write_text(json.dumps(records.to_json(record)))


async def run_world(folder: Path, count: int) -> None:
    """Serve until told to stop; the counts go to world.json."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    world = World()
    # redirect_stdout is for the whole process: trainings are pretended one at a time
    asyncio.get_running_loop().set_default_executor(one_thread())
    quiet = types.SimpleNamespace(SIGTERM=15, signal=lambda *_: None)
    vars(stand_in)["signal"] = quiet  # these threads are not the main one
    hosts, lines, servers = {}, [], []
    for number in range(1, count + 1):
        key = asyncssh.generate_private_key("ssh-ed25519")
        port = free_port()
        servers.append(
            await asyncssh.create_server(
                world.server, "127.0.0.1", port, server_host_keys=[key],
                process_factory=world.handle, encoding=None,
            )
        )  # fmt: skip
        name = f"box{number:03d}"
        root = folder / "boxes" / name
        root.mkdir(parents=True)
        hosts[name] = {"address": "127.0.0.1", "port": port, "root": str(root)}
        public = " ".join(key.export_public_key().decode().split()[:2])
        lines.append(f"[127.0.0.1]:{port} {public}\n")
    client = asyncssh.generate_private_key("ssh-ed25519")
    (folder / "client_key").write_bytes(client.export_private_key())
    (folder / "client_key").chmod(0o600)
    (folder / "known_hosts").write_text("".join(lines))
    (folder / "edgeladder").touch()  # that it is there is all that the agent asks
    defaults = {"key": str(folder / "client_key"), "program": str(folder / "edgeladder")}
    (folder / "fleet.yaml").write_text(yaml.safe_dump({"defaults": defaults, "hosts": hosts}))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    counts = {name: value for name, value in vars(world).items() if name.startswith(("m", "t"))}
    (folder / "world.json").write_text(json.dumps(counts))


def one_thread() -> Any:
    """An executor for one thing at a time."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1)


def measure(folder: Path, parallel: int) -> tuple[int, dict[str, Any], float, int]:
    """The controller in its own process: exit code, answer, seconds, peak bytes."""
    command = [
        sys.executable, "-c", "import sys; from edgeladder.cli.app import main; sys.exit(main())",
        "fleet", "rounds", "1", "--name", "fed", "--inventory", str(folder / "fleet.yaml"),
        "--bundle", str(folder / "bundle"), "--out", str(folder / "out"), "--poll", "1",
        "--parallel", str(parallel), "--json",
    ]  # fmt: skip
    began = time.monotonic()
    with open(folder / "answer.json", "w+b") as answer:
        process = subprocess.Popen(command, stdout=answer, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        answer.seek(0)
        values = json.loads(answer.read())
    return process.returncode, values, time.monotonic() - began, usage.ru_maxrss * 1024


def main() -> None:
    """Start the world, run the controller twice, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.world:
        asyncio.run(run_world(arguments.world, arguments.boxes))
        return
    folder = Path(tempfile.mkdtemp(prefix="edgeladder-scale-"))
    write_bundle(folder / "bundle", weights_bytes=1_000_000, width=62_500)
    world = subprocess.Popen(
        [sys.executable, __file__, "--world", str(folder), "--boxes", str(arguments.boxes)],
        stdout=subprocess.PIPE,
    )
    try:
        assert world.stdout is not None and world.stdout.readline() == b"ready\n"
        first = measure(folder, arguments.parallel)
        second = measure(folder, arguments.parallel)
    finally:
        world.terminate()
        world.wait()
    counts = json.loads((folder / "world.json").read_text())
    assert first[0] == 0 and len(first[1]["done"]) == arguments.boxes, first[1]
    assert second[0] == 0 and len(second[1]["unchanged"]) == arguments.boxes
    assert counts["most_requests"] <= arguments.parallel, counts
    assert max(first[3], second[3]) < MEMORY_LIMIT_BYTES, first[3]
    print(
        "| run | boxes | parallel | requests at once | connections at once | seconds | peak, MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for number, (_, _, seconds, peak_bytes) in enumerate((first, second), 1):
        print(
            f"| {number} | {arguments.boxes} | {arguments.parallel} | {counts['most_requests']} | "
            f"{counts['most_connections']} | {seconds:.0f} | {peak_bytes / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
