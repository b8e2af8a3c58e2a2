"""Host keys: unknown and changed ones are refused, always; logins by key only."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable
from typing import Any

import asyncssh
import pytest

from edgeladder.fleet.box.records import ProbeAnswer, ProbeRequest
from edgeladder.fleet.host_pool import run
from edgeladder.fleet.outcomes import FleetOutcome, HostResult
from edgeladder.fleet.transport import Box
from edgeladder.fleet.trust import fingerprint


async def probe(box: Box) -> HostResult:
    facts = await box.call(ProbeRequest("/none"), ProbeAnswer)
    return HostResult(box.host.name, "done", {"python": facts.python})


def kinds(outcome: FleetOutcome) -> dict[str, str | None]:
    return {r.host: (r.error or {}).get("kind") for r in outcome.results}


def test_unknown_is_refused_until_pinned(make_farm: Any, pool_of: Any, fleet_cli: Any) -> None:
    farm = make_farm("a", "b")
    pins = farm.folder / "known_hosts"
    pins.unlink()
    outcome = run(pool_of(farm).each("probe", probe))
    assert kinds(outcome) == {"a": "unpinned", "b": "unpinned"}
    code, shown = fleet_cli("trust", "-i", farm.inventory)
    assert code == 6 and not pins.exists()  # shown, not pinned
    wanted = fingerprint(farm.boxes["a"].public_key)
    assert shown["hosts"]["a"]["fingerprint"] == wanted
    code, _ = fleet_cli("trust", "-i", farm.inventory, "--fingerprint", wanted)
    assert code == 6  # b has another
    assert kinds(run(pool_of(farm).each("probe", probe))) == {"a": None, "b": "unpinned"}
    code, _ = fleet_cli("trust", "-i", farm.inventory, "--yes")
    assert code == 0
    assert kinds(run(pool_of(farm).each("probe", probe))) == {"a": None, "b": None}


def test_changed_is_refused_always(make_farm: Any, pool_of: Any, fleet_cli: Any) -> None:
    farm = make_farm("a")
    box = farm.boxes["a"]
    before = box.public_key
    box.stop()
    box.new_host_key()
    box.start()
    outcome = run(pool_of(farm).each("probe", probe))
    error = outcome.results[0].error or {}
    assert error["kind"] == "hostkey"
    assert fingerprint(before) in str(error["message"])
    assert fingerprint(box.public_key) in str(error["message"])
    code, answer = fleet_cli("trust", "-i", farm.inventory, "--yes")
    assert code == 6 and answer["hosts"]["a"]["error"]["kind"] == "hostkey"
    assert before in (farm.folder / "known_hosts").read_text()
    assert fleet_cli("trust", "-i", farm.inventory, "--forget", "a")[0] == 0
    assert fleet_cli("trust", "-i", farm.inventory, "--yes")[0] == 0
    assert kinds(run(pool_of(farm).each("probe", probe))) == {"a": None}


def test_pins_are_openssh_s_own_format(make_farm: Any, fleet_cli: Any) -> None:
    farm = make_farm("a")
    (farm.folder / "known_hosts").unlink()
    fleet_cli("trust", "-i", farm.inventory, "--yes")
    box = farm.boxes["a"]
    done = subprocess.run(
        ["ssh", "-F", "none", "-p", str(box.port), "-i", str(farm.key), "-o", "BatchMode=yes",
         "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes",
         "-o", f"UserKnownHostsFile={farm.folder / 'known_hosts'}", "127.0.0.1", "echo there"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "there\n", done.stderr


def test_a_wrong_key_is_no_password_prompt(
    make_farm: Any, pool_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    farm = make_farm("a")
    private = asyncssh.generate_private_key("ssh-ed25519").export_private_key()
    farm.key.write_bytes(private)
    outcome = run(pool_of(farm, tries=1).each("probe", probe))
    error = outcome.results[0].error or {}
    assert error["kind"] == "login" and "authorized_keys" in str(error["remedy"])
    said = caplog.text + str(outcome.to_dict())
    assert private.decode().splitlines()[1] not in said


def test_jump_host(make_farm: Any, pool_of: Any) -> None:
    farm = make_farm("gate", "inner")
    text = farm.inventory.read_text().replace("  inner:\n", "  inner:\n    jump: gate\n")
    farm.inventory.write_text(text)
    pool = pool_of(farm)
    assert pool.hosts[1].jump == "gate"
    assert kinds(run(pool.each("probe", probe))) == {"gate": None, "inner": None}
    farm.boxes["gate"].stop()
    outcome = run(pool_of(farm, tries=1).each("probe", probe))
    assert kinds(outcome) == {"gate": "unreachable", "inner": "unreachable"}


Handler = Callable[[asyncssh.SSHServerProcess], Any]


class _AnyKey(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("banner", "python"),
        ("complaint", "python"),
        ("endless", "integrity"),
        ("mute", "timeout"),
        ("gone", "lost"),
        ("list", "python"),
    ],
)
def test_boxes_that_answer_wrongly(
    make_farm: Any, pool_of: Any, fault: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncssh's own server plays a box whose answers are broken or hostile."""
    monkeypatch.setattr("edgeladder.fleet.transport.ANSWER_LIMIT_BYTES", 1 << 20)
    farm = make_farm("a")
    box = farm.boxes["a"]
    box.stop()

    async def handler(process: asyncssh.SSHServerProcess) -> None:
        if fault == "banner":
            process.stdout.write(b"Welcome to the box!\n")
        elif fault == "list":
            process.stdout.write(b"[1]\n")
        elif fault == "complaint":
            process.stderr.write(b"sh: 1: python3: not found\n")
            process.exit(127)
            return
        elif fault == "endless":
            while True:
                process.stdout.write(b"x" * 65536)
                await process.stdout.drain()
        elif fault == "mute":
            await asyncio.sleep(30)
        elif fault == "gone":
            process.channel.get_connection().abort()
        process.exit(0)

    async def listen() -> asyncssh.SSHAcceptor:
        for _ in range(100):  # somebody's connection may have taken the port since the box stopped
            try:
                return await asyncssh.create_server(
                    _AnyKey, "127.0.0.1", box.port, server_host_keys=[str(box.folder / "host_key")],
                    process_factory=handler, encoding=None,
                )  # fmt: skip
            except OSError:
                await asyncio.sleep(0.2)
        return pytest.fail(f"port {box.port} was taken by another process")

    async def main() -> FleetOutcome:
        async with await listen():
            # only silence may be taken for silence, however busy the machine is
            patience = 1.0 if fault == "mute" else 20.0
            return await pool_of(farm, tries=2, timeout=patience).each("probe", probe)

    outcome = asyncio.run(main())
    assert kinds(outcome) == {"a": kind}
    assert outcome.results[0].tries == (2 if kind in ("timeout", "lost") else 1)
    if fault == "complaint":
        assert "python3: not found" in str((outcome.results[0].error or {})["message"])
