"""A checkout before the referee: its commands, pinned and killable, the pictures they are given."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import subprocess
import time
import zipfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench import sums

THREADS = 2
VIEWS = (None, 0, 1, 3)  # Pillow's transpositions: none, mirrored, upside down, half a turn


class Failure(Exception):
    """A command failed, or did not do what the referee needs of it."""


@dataclass
class Court:
    """The tree that is judged, the interpreters that run it and the folder it works in."""

    tree: Path
    host_python: str
    device_python: str
    work: Path
    entry: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the console script's entry point, and see that it is this tree's in both."""
        text = (self.tree / "pyproject.toml").read_text(encoding="utf-8")
        found = re.search(r'^edgeladder = "([\w.]+):(\w+)"', text, re.MULTILINE)
        if not found:
            raise Failure(f"{self.tree}/pyproject.toml names no script `edgeladder`")
        self.entry = f"from {found[1]} import {found[2]}; {found[2]}()"
        for python in {self.host_python, self.device_python}:
            asked = [python, "-c", "import edgeladder; print(edgeladder.__file__)"]
            there = self._run(asked).stdout.strip()
            if not Path(there).is_relative_to(self.tree):
                raise Failure(f"{python} imports edgeladder from {there}, not from {self.tree}")

    @property
    def data(self) -> Path:
        """The embedded pictures, unpacked."""
        return self.work / "pictures"

    def environment(self) -> dict[str, str]:
        """Of every command: this tree, two threads, and no memory of other machines' floors."""
        pinned = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS)
        )
        return {
            **os.environ,
            **pinned,
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_CACHE_HOME": str(self.work / "home"),
        }

    def command(self, *arguments: object, host: bool = False) -> list[str]:
        """A command line of `edgeladder`."""
        python = self.host_python if host else self.device_python
        return [python, "-c", self.entry, *map(str, arguments), "--json"]

    def ask(self, *arguments: object, host: bool = False, codes: tuple[int, ...] = (0,)) -> Any:
        """The JSON that a command of `edgeladder` answers.

        Raises:
            Failure: with another exit code than these.
        """
        done = self._run(self.command(*arguments, host=host), codes)
        return json.loads(done.stdout)

    def _run(
        self, command: list[str], codes: tuple[int, ...] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.work, env=self.environment()
        )
        if done.returncode not in codes:
            said = (done.stderr + done.stdout).strip()[-2000:]
            raise Failure(f"exit {done.returncode}: {shlex.join(command)}\n{said}")
        return done


def sets(settings: list[str]) -> list[str]:
    """`--set` for each of these."""
    return [word for setting in settings for word in ("--set", setting)]


def kill_after(court: Court, command: list[str], run: Path, steps: int) -> int:
    """Start a training and kill it, with every process it started; the steps it had done.

    Raises:
        Failure: it ended by itself.
    """
    import psutil

    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=court.work,
        env=court.environment(),
        start_new_session=True,
    )
    while steps_done(run) < steps:
        time.sleep(0.005)
        if process.poll() is not None:
            raise Failure(f"ended with {process.returncode} before step {steps}: {command}")
    # the supervisor first: it would start a killed worker again
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    return steps_done(run)


def steps_done(run: Path) -> int:
    """Steps that a run has written down so far."""
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"kind": "step"') if metrics.exists() else 0


def squares(paths: list[Path], side: int = 224) -> sums.Array:
    """Pictures squeezed into squares: (N, side, side, 3) uint8."""
    from PIL import Image

    small = [Image.open(path).convert("RGB").resize((side, side)) for path in paths]
    return np.stack([np.asarray(picture, np.uint8) for picture in small])


def unpack_pictures(court: Court) -> None:
    """The embedded pictures as a folder, and a second folder with those to train on four times."""
    from PIL import Image

    with zipfile.ZipFile(court.tree / "edgeladder" / "_nano" / "pictures.zip") as archive:
        archive.extractall(court.data)
    for path in sorted(path for path in court.data.rglob("*") if path.is_file()):
        place = court.work / "views" / path.relative_to(court.data)
        place.parent.mkdir(parents=True, exist_ok=True)
        if "train" not in place.parts:
            place.write_bytes(path.read_bytes())
            continue
        picture = Image.open(path).convert("RGB")
        for number, turn in enumerate(VIEWS):
            turned = picture if turn is None else picture.transpose(Image.Transpose(turn))
            turned.save(place.with_name(f"{path.stem}-{number}.png"))


def describe(court: Court, seconds: float) -> dict[str, Any]:
    """Where sums come from: they are compared, this is not."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", court.tree, *words], capture_output=True, text=True)
        return done.stdout.strip()

    packages = ("numpy", "onnxruntime", "onnxruntime-training-cpu", "torch", "onnx", "pillow")
    known = {
        package.metadata["Name"].lower(): package.version for package in metadata.distributions()
    }
    return {
        "command": "python -m tools.bench.referee --tree TREE --device-python PYTHON",
        "commit": git("rev-parse", "HEAD") + (" and changes" if git("status", "--short") else ""),
        "machine": f"{platform.machine()}, {THREADS} threads, {_processor()}",
        "host": {name: known[name] for name in packages if name in known},
        "seconds": round(seconds),
        "notes": court.notes,
    }


def _processor() -> str:
    """The processor's name: kernels are chosen by it, and sums with them."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown processor"
