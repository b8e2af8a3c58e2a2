"""Memory and time of `edgeladder serve` and `watch` over many pictures.

    python -m tools.bench.on_duty serve --run RUN --pictures 10000 --budget 400MB --out FILE.csv
    python -m tools.bench.on_duty watch --run RUN --pictures 10000 --budget 400MB --out FILE.csv

Small JPEGs (160 x 120, a hundred different ones) go through the real command, one at a time. A row
every 250 pictures: proportional memory (PSS) of all its processes together, and the median time of
an answer as the client sees it (`serve`) or the time a picture took (`watch`).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import http.client
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from edgeladder.budget import meter

_EVERY = 250
_DIFFERENT = 100
_AHEAD = 200  # pictures that lie in the watched folder
COMMAND = [sys.executable, "-c", "from edgeladder.cli.app import run; run()"]

Row = tuple[int, float, float]  # pictures, MB, milliseconds


def jpegs() -> list[bytes]:
    """Coloured noise, as JPEG files."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(_DIFFERENT):
        small = random.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((160, 120)).save(stream, "JPEG")
        found.append(stream.getvalue())
    return found


@contextlib.contextmanager
def running(words: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and its first line on stderr."""
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process, process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def megabytes(process: subprocess.Popen[str]) -> float:
    """PSS of the process and all it started."""
    return meter.measure(process.pid).bytes / 1e6


def serve(words: list[str], pictures: int) -> Iterator[Row]:
    """Ask over one kept connection."""
    contents = jpegs()
    with running(["serve", "--port", "0", *words]) as (process, said):
        port = int(said.rstrip("/\n").rpartition(":")[2])
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        taken: list[float] = []
        for number in range(1, pictures + 1):
            began = time.perf_counter()
            line.request("POST", "/predict", contents[number % _DIFFERENT])
            answer = line.getresponse()
            answer.read()
            taken.append(time.perf_counter() - began)
            assert answer.status == 200
            if number % _EVERY == 0:
                yield number, megabytes(process), 1e3 * statistics.median(taken)
                taken = []


def watch(words: list[str], pictures: int) -> Iterator[Row]:
    """Keep a folder filled; what is labelled is moved away."""
    contents = jpegs()
    with tempfile.TemporaryDirectory() as place:
        inbox, done = Path(place, "in"), Path(place, "sorted")
        inbox.mkdir()
        told = ["watch", str(inbox), "--out", f"{place}/answers.csv", "--sort-into", str(done)]
        with running([*told, *words]) as (process, _):
            put = reported = 0
            began = time.perf_counter()
            while reported < pictures:
                lying = len(os.listdir(inbox))
                while put < pictures and lying < _AHEAD:
                    temporary = inbox / f".{put}"
                    temporary.write_bytes(contents[put % _DIFFERENT])
                    temporary.rename(inbox / f"{put}.jpg")
                    put, lying = put + 1, lying + 1
                time.sleep(0.2)
                if put - len(os.listdir(inbox)) >= reported + _EVERY:
                    reported += _EVERY
                    now = time.perf_counter()
                    yield reported, megabytes(process), 1e3 * (now - began) / _EVERY
                    began = now


def main() -> None:
    """Measure, a row as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["serve", "watch"])
    parser.add_argument("--run", required=True)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--budget", default="400MB")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    words = ["--run", given.run, "--budget", given.budget]
    measured = (serve if given.command == "serve" else watch)(words, given.pictures)
    with open(given.out, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["pictures", "pss_mb", "median_ms"])
        for pictures, size, milliseconds in measured:
            rows.writerow([pictures, f"{size:.2f}", f"{milliseconds:.1f}"])
            stream.flush()
            print(f"{pictures} pictures: {size:.1f} MB, {milliseconds:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
