"""A farm of boxes on this machine: real sshd instances on loopback ports.

Each has its own home, host key and faults. For tests, proofs and trying the fleet out without
hardware.

    python tools/fleet/farm.py --boxes 5 --folder farm      # runs until interrupted

Needs openssh-server (Debian: apt install openssh-server). Run by root, root logs in; run by
another user, that user does: every sshd listens on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import asyncssh
import yaml

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {keys}
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home}
UseDNS no
MaxStartups 200
LogLevel ERROR
"""


def sshd_program() -> str:
    """The sshd of this machine.

    Raises:
        SystemExit: there is none.
    """
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise SystemExit("no sshd on this machine: apt install openssh-server")
    return found


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """Stands between the fleet and one sshd, to break the connection on purpose."""

    def __init__(self, target: int):
        self.target = target
        self.port = free_port()
        self.break_after: int | None = None  # bytes towards the box, then the line is cut, once
        self.silent = False  # takes connections and passes nothing on
        self.connections = 0
        self.towards_box = 0
        self._server = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and cut all lines."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Cut all lines now."""
        for line in list(self._open):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(client)
            if self.silent:
                continue
            try:
                box = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            self._open.add(box)
            for source, sink, up in ((client, box, True), (box, client, False)):
                threading.Thread(target=self._pass, args=(source, sink, up), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        seen = 0
        try:
            while block := source.recv(1 << 15):
                if up and self.break_after is not None:
                    seen += len(block)
                    time.sleep(0.015)  # a slow line: what a fast one holds in flight is lost
                    if seen > self.break_after:
                        self.break_after = None
                        break
                sink.sendall(block)
                self.towards_box += len(block) if up else 0
        except OSError:
            pass
        for line in (source, sink):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
            self._open.discard(line)


class FarmBox:
    """One sshd with its own home."""

    def __init__(self, name: str, folder: Path, keys: Path, *, proxied: bool = False):
        self.name = name
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.port = free_port()
        self.new_host_key()
        (folder / "config").write_text(
            CONFIG.format(port=self.port, folder=folder, keys=keys, home=self.home)
        )
        self.proxy = Proxy(self.port) if proxied else None
        self._sshd: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        """What the fleet keeps on this box."""
        return self.home / "edgeladder"

    def behave(self, **behaviour: object) -> None:
        """Tell the box's stand-in for `edgeladder` what to do (tools/fleet/stand_in.py)."""
        (self.home / "behaviour.json").write_text(json.dumps(behaviour))

    def set_environment(self, **variables: object) -> None:
        """Give the box's sessions variables; a running sshd is started anew."""
        path = self.folder / "config"
        home = f"SetEnv HOME={self.home}"
        more = " ".join(f"{name}={value}" for name, value in variables.items())
        path.write_text(path.read_text().replace(home, f"{home} {more}"))
        if self._sshd is not None:
            self.reboot()

    def new_host_key(self) -> None:
        """Give the box a host key (another one, if it had one)."""
        path = self.folder / "host_key"
        key = asyncssh.generate_private_key("ssh-ed25519")
        path.write_bytes(key.export_private_key())
        path.chmod(0o600)
        self.public_key = " ".join(key.export_public_key().decode().split()[:2])

    def start(self) -> None:
        """Start sshd and wait until it listens."""
        with open(self.folder / "sshd.log", "ab") as log:
            self._sshd = subprocess.Popen(
                [sshd_program(), "-D", "-e", "-f", str(self.folder / "config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self._sshd.poll() is not None:
                break
            time.sleep(0.02)
        raise SystemExit(f"sshd did not start: {(self.folder / 'sshd.log').read_text()[-500:]}")

    def processes(self) -> list[int]:
        """All processes of this box: sshd, its sessions and what they left running."""
        found = []
        mark = f"HOME={self.home}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        if self._sshd is not None and self._sshd.poll() is None:
            found += [self._sshd.pid, *_children(self._sshd.pid)]
        return found

    def signal(self, number: int) -> None:
        """Send a signal to all processes of this box."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """Kill everything of this box: a power cut."""
        for _ in range(3):
            self.signal(signal.SIGKILL)
        if self._sshd is not None:
            self._sshd.wait()
            self._sshd = None

    def reboot(self) -> None:
        """A power cut, and the box comes up again."""
        self.stop()
        self.start()

    def entry(self) -> dict[str, object]:
        """This box in an inventory."""
        port = self.proxy.port if self.proxy else self.port
        return {"address": "127.0.0.1", "port": port}


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_children(int(child))]
    return found


class Farm:
    """Boxes and what is needed to reach them: a client key, an inventory, pinned host keys."""

    def __init__(self, folder: Path, names: list[str], *, proxied: bool = False, **defaults: str):
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, made at boot where it is a service
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key = folder / "client_key"
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.key.write_bytes(key.export_private_key())
        self.key.chmod(0o600)
        keys = folder / "authorized_keys"
        keys.write_bytes(key.export_public_key())
        self.boxes = {name: FarmBox(name, folder / name, keys, proxied=proxied) for name in names}
        self.inventory = folder / "fleet.yaml"
        self.defaults = defaults

    def start(self) -> Farm:
        """Start all boxes, write the inventory and pin the keys."""
        for box in self.boxes.values():
            box.start()
        self.write_inventory()
        self.pin()
        return self

    def write_inventory(self) -> None:
        """The inventory of all boxes."""
        values = {
            "defaults": {"key": str(self.key), **self.defaults},
            "hosts": {name: box.entry() for name, box in self.boxes.items()},
        }
        self.inventory.write_text(yaml.safe_dump(values, sort_keys=False))

    def pin(self) -> None:
        """Pin every box's present host key, as `fleet trust --yes` would."""
        lines = [
            f"[127.0.0.1]:{box.entry()['port']} {box.public_key} {name}\n"
            for name, box in self.boxes.items()
        ]
        (self.folder / "known_hosts").write_text("".join(lines))

    def stop(self) -> None:
        """Stop all boxes."""
        for box in self.boxes.values():
            box.stop()
            if box.proxy:
                box.proxy.close()


def main() -> None:
    """Run a farm until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("farm"))
    parser.add_argument("--program", help="an `edgeladder` for all boxes, instead of installing it")
    arguments = parser.parse_args()
    names = [f"box{number:02d}" for number in range(1, arguments.boxes + 1)]
    extra = {"program": str(Path(arguments.program).resolve())} if arguments.program else {}
    farm = Farm(arguments.folder.resolve(), names, proxied=False, **extra).start()
    print(json.dumps({"inventory": str(farm.inventory), "boxes": names}), flush=True)
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        farm.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
