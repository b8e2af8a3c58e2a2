"""Federated learning on photographs of garments: five boxes, no picture on two of them.

    python tools/fleet/federated_clothing.py clothing.zip bundle [--rounds 5] [--shots 16]

Splits an archive with train/ and test/ folders over five sshd boxes of a farm (the training
pictures without overlap; every box judges on the same test pictures), then compares on the whole
test set: zero-shot, each box alone, the average after each round, and all data in one place; none
of them with a closed-form head, which cannot be averaged. Boxes alone and all data in one place are
also trained with the bundle's own head.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tree, not what is installed

from edgeladder.fleet.averaging import HEADLESS  # noqa: E402
from tools.fleet.farm import Farm  # noqa: E402

START = "import sys; from edgeladder.cli.app import run; run()"


def split(archive: Path, boxes: list[Path], together: Path) -> None:
    """Unpack: training pictures to one box each by a hash of the name, and all to `together`."""
    with zipfile.ZipFile(archive) as pictures:
        for name in pictures.namelist():
            parts = Path(name).parts
            if name.endswith("/") or len(parts) < 3 or parts[-3] not in ("train", "test"):
                continue
            number = int(hashlib.sha256(parts[-1].encode()).hexdigest(), 16) % len(boxes)
            homes = boxes if parts[-3] == "test" else [boxes[number]]
            content = pictures.read(name)
            for home in [*homes, together]:
                target = home.joinpath(*parts[-3:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def edgeladder(*arguments: object) -> dict[str, Any]:
    """Run a command; its JSON answer."""
    command = [sys.executable, "-c", START, *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    answer: dict[str, Any] = json.loads(done.stdout)
    if done.returncode:
        raise SystemExit(json.dumps(answer, indent=2))
    return answer


def main() -> None:
    """Split, train, average, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shots", type=int, help="Pictures per class and box. [all]")
    parser.add_argument("--epochs", type=int, default=6, help="On each box in each round.")
    parser.add_argument("--budget", default="1GB")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="edgeladder-federated-"))
    program = folder / "edgeladder"
    tree = Path(__file__).resolve().parents[2]  # installed or not
    program.write_text(f"#!/bin/sh\nPYTHONPATH={tree} exec {sys.executable} -c '{START}' \"$@\"\n")
    program.chmod(0o755)
    names = [f"box{number}" for number in range(1, arguments.boxes + 1)]
    farm = Farm(folder / "farm", names, program=str(program), budget=arguments.budget)
    split(
        arguments.archive,
        [farm.boxes[name].root / "data" for name in names],
        folder / "together",
    )
    farm.start()
    try:
        compare(farm, folder, arguments)
    finally:
        farm.stop()


def compare(farm: Farm, folder: Path, arguments: argparse.Namespace) -> None:
    """The table."""
    fleet = ["--inventory", farm.inventory, "--bundle", arguments.bundle, "--out", folder / "out"]
    shots = ["--shots", arguments.shots] if arguments.shots else []
    total = ["--set", f"train.epochs={arguments.rounds * arguments.epochs}"]
    each = ["--set", f"train.epochs={arguments.epochs}"]
    edgeladder("fleet", "push", *fleet[:4])
    print("| trained on | pictures | accuracy |\n|---|---|---|")
    zero = None
    for job, head in (("alone", ["--set", HEADLESS]), ("alone-with-head", [])):
        options = [*shots, *total, *head, "--job", job]
        alone = edgeladder("fleet", "train", *fleet[:4], *options, "--wait")
        assert not alone["failed"]
        edgeladder("fleet", "pull", *fleet, "--job", job)
        for name in farm.boxes:
            path = folder / "out" / job / "hosts" / name / "result.json"
            result = json.loads(path.read_text())
            zero = result["accuracy"]["zero_shot"]
            row = (f"{name} {job}", result["counts"]["train"], result["accuracy"]["tuned"])
            print("| {} | {} | {:.1%} |".format(*row), flush=True)
    answer = edgeladder("fleet", "rounds", arguments.rounds, "--name", "fed", *fleet, *shots, *each)
    assert not answer["failed"]
    for number in range(1, arguments.rounds + 1):
        average = folder / "out" / f"fed-r{number}" / "average"
        judged = edgeladder("fleet", "evaluate", *fleet, "--limit", "box1", "--adapter", average)
        print(f"| average, round {number} | - | {judged['accuracy']:.1%} |", flush=True)
    for head in (["--set", HEADLESS], []):
        together = edgeladder(
            "train", "--bundle", arguments.bundle, "--data", folder / "together", "--run",
            folder / ("run" if head else "run-with-head"), "--cache", folder / "cache",
            "--budget", arguments.budget, *total, *head,
            *(["--shots", arguments.shots * len(farm.boxes)] if arguments.shots else []),
        )  # fmt: skip
        found = (together["counts"]["train"], together["accuracy"]["tuned"])
        label = "all data in one place" + ("" if head else ", with the head")
        print("| {} | {} | {:.1%} |".format(label, *found), flush=True)
    print(f"| nothing (zero-shot) | 0 | {zero:.1%} |")


if __name__ == "__main__":
    main()
