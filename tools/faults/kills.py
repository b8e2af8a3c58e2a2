"""SIGKILL at random moments of whole commands: the same command again gives the same result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeladder.core.files import sha256_file
from tools.faults.commands import precompute

_BUDGET = ["--budget", "900MB", "--set", "train.steps=12", "--set", "train.checkpoint_steps=3"]
_GONE_SECONDS = 1.0  # in which workers of a killed supervisor end


@dataclass(frozen=True)
class KilledCommand:
    """A command line and what must be the same in the end.

    Attributes:
        words: of the command in a folder.
        state: of the folder when it is done, and what it printed.
        needs: another command that was run there before.
    """

    words: Callable[[Path], list[str]]
    state: Callable[[Path, str], Any]
    needs: str | None = None


def _own(*words: str) -> list[str]:
    return [sys.executable, "-c", "from edgeladder.cli.app import run; run()", *words]


def commands(bundle: Path, data: Path, more: Path) -> dict[str, KilledCommand]:
    """All that write, and those that must not be misled by what is half there.

    Args:
        bundle: that most are tried on; condensing takes nano, which has masks for it.
        data: pictures by class.
        more: other pictures.
    """
    where = ["--bundle", str(bundle), "--data", str(data)]

    def training(bundle: str) -> Callable[[Path], list[str]]:
        def train(place: Path) -> list[str]:
            run = place / "run"
            if (run / "config.yaml").is_file():
                return _own("train", "--resume", str(run), "--json")
            return _own("train", "--bundle", bundle, "--data", str(data), "--cache",
                        str(place / "cache"), "--run", str(run), *_BUDGET, "--json")  # fmt: skip

        return train

    def condense(place: Path) -> list[str]:
        made = place / "condensed"
        if (made / "config.yaml").is_file():
            return _own("train", "--resume", str(made), "--json")
        return _own("condense", "--run", run(place), "--out", str(made), "--budget", "900MB",
                    "--set", "condense.epochs=1", "--json")  # fmt: skip

    def adapter(place: Path, said: str) -> Any:
        return sha256_file(place / "run" / "adapter.safetensors")

    def accuracy(place: Path, said: str) -> Any:
        return json.loads(said)["accuracy"]

    def predictions(place: Path, said: str) -> Any:
        return [item["labels"] for item in json.loads(said)["predictions"]]

    def named(*keys: str) -> Callable[[Path, str], Any]:
        return lambda place, said: [json.loads(said)[key] for key in keys]

    def out(name: str) -> Callable[[Path, str], Any]:
        return lambda place, said: sha256_file(place / name)

    def run(place: Path) -> str:
        return str(place / "run")

    return {
        "export": KilledCommand(
            lambda place: [sys.executable, "-m", "tests.make_bundle", str(place / "bundle")],
            lambda place, said: {
                str(p.relative_to(place)): sha256_file(p)
                for p in place.rglob("*")
                if p.is_file()
            },
        ),
        "precompute": KilledCommand(
            lambda place: _own("precompute", *where, "--cache", str(place / "cache"),
                               "--budget", "900MB", "--json"),
            lambda place, said: precompute(bundle, data).state(place),
        ),
        "train": KilledCommand(training(str(bundle)), adapter),
        "train nano": KilledCommand(training("nano"), adapter),
        "deploy": KilledCommand(
            lambda place: _own("deploy", "--run", run(place), "--out", str(place / "m.onnx"),
                               "--budget", "900MB", "--json"),
            out("m.onnx"), "train",
        ),
        "evaluate": KilledCommand(
            lambda place: _own("evaluate", "--run", run(place), "--budget", "900MB", "--json"),
            accuracy, "train",
        ),
        "predict": KilledCommand(
            lambda place: _own("predict", str(data), "--run", run(place), "--budget", "900MB",
                               "--json"),
            predictions, "train",
        ),
        "check": KilledCommand(
            lambda place: _own("check", *where, "--cache", str(place / "cache"),
                               "--budget", "900MB", "--json"),
            named("count", "suspects", "duplicates", "confused", "small_classes"),
        ),
        "suggest": KilledCommand(
            lambda place: _own("suggest", "3", *where, "--unlabelled", str(more), "--cache",
                               str(place / "cache"), "--budget", "900MB", "--json"),
            named("pictures", "unlabelled"),
        ),
        "condense": KilledCommand(
            condense,
            lambda place, said: sha256_file(place / "condensed" / "adapter.safetensors"),
            "train nano",
        ),
        "report": KilledCommand(
            lambda place: _own("report", "--run", run(place), "--json"),
            lambda place, said: (place / "run" / "report.html").stat().st_size > 1000, "train",
        ),
    }  # fmt: skip


class Killer:
    """Kills commands in folders of their own."""

    def __init__(self, work: Path, bundle: Path, data: Path, more: Path):
        self.work, self.known = work, commands(bundle, data, more)
        self._ready: dict[str, tuple[Path, Any, float]] = {}  # folder before, state, seconds

    def prepare(self, name: str) -> tuple[Path, Any, float]:
        """A folder as it is before the command, the state after it, and how long it takes."""
        if name not in self._ready:
            command, start = self.known[name], self.work / f"before-{name}"
            if command.needs:
                self.prepare(command.needs)
                shutil.copytree(self.work / f"after-{command.needs}", start)
            else:
                start.mkdir()
            after = Path(shutil.copytree(start, self.work / f"after-{name}"))
            began = time.monotonic()
            state = command.state(after, self._whole(name, after))
            self._ready[name] = start, state, time.monotonic() - began
        return self._ready[name]

    def kill(self, name: str, chance: random.Random) -> str | None:
        """Kill a command, run it again; None where the end is the same."""
        start, expected, seconds = self.prepare(name)
        place = self.work / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(start, place)
        words = self.known[name].words(place)
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chance.uniform(0, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(_GONE_SECONDS)
        try:
            found = self.known[name].state(place, self._whole(name, place))
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            return str(error)
        return None if found == expected else "the same command again gives another result"

    def _whole(self, name: str, place: Path) -> str:
        done = subprocess.run(self.known[name].words(place), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
        return done.stdout
