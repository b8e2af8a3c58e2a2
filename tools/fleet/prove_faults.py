"""Twenty sshd boxes, each third of them in trouble: what `edgeladder fleet rounds` makes of it.

    python tools/fleet/prove_faults.py [--markdown]

Broken connections while pushing and training, a box that loses power, a full disk, a changed host
key, a hung box, NaN adapters. The first run must end with exit code 6 and name each; after the
faults are mended, a second run must do only what is missing. Run as root: the full disk is a
tmpfs of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tree, not what is installed

from tools.fleet.farm import Farm, FarmBox, Proxy  # noqa: E402
from tools.fleet.tiny_bundle import write_bundle  # noqa: E402

TOOLS = Path(__file__).resolve().parent
TROUBLED = ("cut-push-1", "cut-push-2", "cut-train", "power", "full", "imposter", "hung", "nan")
GOOD = tuple(f"good-{number:02d}" for number in range(1, 13))
ROUNDS = "2"


Run = tuple[int, dict[str, Any], float, int]  # exit code, JSON, seconds, peak bytes


def _line(box: FarmBox) -> Proxy:
    assert box.proxy is not None  # the farm is made with `proxied`
    return box.proxy


def fleet(farm: Farm, bundle: Path, out: Path, timeout: float) -> Run:
    """Run the command as its own process: exit code, JSON, seconds and peak bytes."""
    command = [
        sys.executable, "-c", "import sys; from edgeladder.cli.app import main; sys.exit(main())",
        "fleet", "rounds", ROUNDS, "--name", "fed", "--inventory", str(farm.inventory),
        "--bundle", str(bundle), "--out", str(out), "--timeout", str(timeout), "--poll", "0.5",
        "--patience", "30", "--json",
    ]  # fmt: skip
    began = time.monotonic()
    with open(farm.folder / "answer.json", "w+b") as answer:
        process = subprocess.Popen(command, stdout=answer, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        answer.seek(0)
        values = json.loads(answer.read())
    return process.returncode, values, time.monotonic() - began, usage.ru_maxrss * 1024


def attempts(farm: Farm, name: str, job: str = "fed-r1") -> int:
    """How often a box began a job."""
    return len(list((farm.boxes[name].root / "jobs" / job).glob("attempt-*")))


def trouble(farm: Farm) -> None:
    """While the first run goes on: cut lines and the power."""
    boxes = farm.boxes
    marks = [
        boxes[name].root / "jobs" / "fed-r1" / "run" / "metrics.jsonl"
        for name in ("power", "cut-train")
    ]
    while not all(mark.exists() for mark in marks):
        time.sleep(0.05)
    time.sleep(1)
    boxes["power"].reboot()
    for _ in range(10):
        _line(boxes["cut-train"]).cut()
        time.sleep(0.4)


def main() -> None:
    """Run both runs and check the outcomes."""
    folder = Path(tempfile.mkdtemp(prefix="edgeladder-farm-"))
    program = folder / "edgeladder"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {TOOLS / "stand_in.py"} "$@"\n')
    program.chmod(0o755)
    bundle = write_bundle(folder / "bundle", weights_bytes=8_000_000).folder
    farm = Farm(folder / "farm", [*GOOD, *TROUBLED], proxied=True, program=str(program))
    boxes = farm.boxes
    disk = boxes["full"].home
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "farm", str(disk)], check=True)
    try:
        for number, name in enumerate(GOOD):
            boxes[name].behave(pictures=10 + number, shift=0.1 * number)
        for name in ("cut-push-1", "cut-push-2"):
            _line(boxes[name]).break_after = 3_000_000
        for name in ("cut-train", "power"):
            boxes[name].behave(steps=150, step_seconds=0.05)
        (disk / "ballast").write_bytes(b"\0" * 11_000_000)
        boxes["nan"].behave(nan=True)
        _line(boxes["hung"]).silent = True
        farm.start()
        boxes["imposter"].stop()
        own = (boxes["imposter"].folder / "host_key").read_bytes(), boxes["imposter"].public_key
        boxes["imposter"].new_host_key()
        boxes["imposter"].start()
        thread = threading.Thread(target=trouble, args=(farm,))
        thread.start()
        out = folder / "out"
        first = fleet(farm, bundle, out, 6)
        thread.join()
        check_first(farm, first)

        boxes["imposter"].stop()
        (boxes["imposter"].folder / "host_key").write_bytes(own[0])
        boxes["imposter"].start()
        _line(boxes["hung"]).silent = False
        (disk / "ballast").unlink()
        boxes["nan"].behave()
        before = {name: _line(box).towards_box for name, box in boxes.items()}
        second = fleet(farm, bundle, out, 10)
        check_second(farm, second, before)
        third = fleet(farm, bundle, out, 10)
        assert third[0] == 0 and len(third[1]["unchanged"]) == 20, third[1]
        show(first, second, third)
    finally:
        farm.stop()
        subprocess.run(["umount", "-l", str(disk)], check=False)


def check_first(farm: Farm, run: Run) -> None:
    """Exit 6, and every fault by its name."""
    code, answer, _, _ = run
    kinds = {
        name: host["error"]["kind"] for name, host in answer["hosts"].items() if "error" in host
    }
    assert code == 6, (code, answer)
    assert kinds == {
        "full": "disk", "imposter": "hostkey", "hung": "timeout", "nan": "integrity",
    }, kinds  # fmt: skip
    assert attempts(farm, "power") == 2 and attempts(farm, "cut-train") == 1


def check_second(farm: Farm, run: Run, before: dict[str, int]) -> None:
    """Everything done, the first round left as it was, nothing sent or trained twice."""
    code, answer, _, _ = run
    assert code == 0, answer
    first_round, second_round = answer["rounds"]
    assert set(first_round["failed"]) == {"full", "imposter", "hung", "nan"}  # stands as it was
    assert not second_round["failed"] and len(second_round["done"]) == 20
    for name, box in farm.boxes.items():
        late = name in ("full", "imposter", "hung")
        assert attempts(farm, name) == (2 if name == "power" else 0 if late else 1), name
        assert attempts(farm, name, "fed-r2") == (2 if name == "nan" else 1), name
        if not late:
            assert _line(box).towards_box - before[name] < 400_000, name


def show(*runs: Run) -> None:
    """The outcomes as a table in Markdown."""
    print("| run | exit code | done | unchanged | failed | seconds | controller's peak, MB |")
    print("|---|---|---|---|---|---|---|")
    for number, (code, answer, seconds, peak_bytes) in enumerate(runs, 1):
        failed = ", ".join(
            f"{name} ({answer['hosts'][name]['error']['kind']})" for name in answer["failed"]
        )
        print(
            f"| {number} | {code} | {len(answer['done'])} | {len(answer['unchanged'])} | "
            f"{failed or '-'} | {seconds:.0f} | {peak_bytes / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
