"""The zero-shot table of docs/nano.md.

    python -m tools.nano.evaluate cifar10.zip clothing.zip rsscn7.zip flowers5.zip

Runs the shipped bundle itself (int8 weights, onnxruntime), with the readable names of
`tools/nano/classes/` and the default prompts where a file there gives none. `--split train`
looks at the other side, for choosing anything; the test split is for the table alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.pictures.class_names import parse_names
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.pictures.decode import decode
from edgeladder.runtime.session import open_plain
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts

_CLASSES = Path(__file__).parent / "classes"
_SHIPPED = Path(__file__).parents[2] / "edgeladder" / "_nano" / "bundle"


class Tower:
    """One side of a bundle: its segments in a row."""

    def __init__(self, bundle: Bundle, side: str, threads: int):
        self._tower = getattr(bundle.manifest, side)
        self._input = "pixels" if side == "image" else "tokens"
        self._sessions = [
            open_plain(bundle.path(segment.file), threads) for segment in self._tower.segments
        ]

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """(n, E) embeddings of length 1 of n pictures or texts."""
        values = {self._input: value}
        for segment, session in zip(self._tower.segments, self._sessions, strict=True):
            names = [tensor.name for tensor in segment.outputs]
            values.update(
                zip(
                    names,
                    session.run(names, {t.name: values[t.name] for t in segment.inputs}),
                    strict=True,
                )
            )
        found: np.ndarray = values[self._tower.embedding]
        unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit


def measure(
    bundle: Bundle, data: Path, *, side: str = "test", threads: int = 1, batch: int = 16
) -> dict[str, Any]:
    """Zero-shot accuracy on one side of a data set's split; recall and guesses per class."""
    dataset = open_data(data)
    train, test = split(dataset, None, 0)
    pictures = test if side == "test" else train
    written = _CLASSES / f"{data.stem}.yaml"
    names, templates = dataset.names, dataset.templates
    if written.is_file():
        text = written.read_text(encoding="utf-8")
        names, templates = parse_names(text, dataset.classes, where=str(written))
    words, read, see = Tokenizer.from_bundle(bundle), *_towers(bundle, threads)
    classes = np.stack([_mean(read(words.encode(p))) for p in class_prompts(names, templates)])
    guesses = np.concatenate(
        [
            (see(np.stack([decode(p.read(), bundle.manifest.preprocess) for p in part]))
             @ classes.T).argmax(1)
            for part in _parts(pictures, batch)
        ]
    )  # fmt: skip
    labels = np.asarray(dataset.labels(pictures))
    return {
        "data": data.stem,
        "split": side,
        "pictures": len(pictures),
        "accuracy": round(float((guesses == labels).mean()), 4),
        "per_class": {
            name: {
                "recall": round(float((guesses[labels == index] == index).mean()), 3),
                "guessed": int((guesses == index).sum()),
            }
            for index, name in enumerate(dataset.classes)
        },
    }


def _towers(bundle: Bundle, threads: int) -> tuple[Tower, Tower]:
    return Tower(bundle, "text", threads), Tower(bundle, "image", threads)


def _mean(rows: np.ndarray) -> np.ndarray:
    mean = rows.mean(0)
    unit: np.ndarray = mean / np.linalg.norm(mean)
    return unit


def _parts(pictures: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def append(path: Path, model: str, row: dict[str, Any]) -> None:
    """A row of `tools/bench/results/zero-shot.csv`."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(["model", "dataset", "split", "pictures", "accuracy"])
        writer.writerow([model, *(row[key] for key in ("data", "split", "pictures", "accuracy"))])


def main() -> None:
    """One row of the table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--bundle", type=Path, default=_SHIPPED)
    parser.add_argument("--split", choices=("test", "train"), default="test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="with every class, as JSON lines")
    parser.add_argument("--csv", type=Path, help="a file of results to append the rows to")
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    for data in given.data:
        row = measure(bundle, data, side=given.split, threads=given.threads)
        if given.csv:
            append(given.csv, bundle.manifest.model.name, row)
        share = 100 * row["accuracy"]
        print(json.dumps(row) if given.json else
              f"| {row['data']} | {row['pictures']} | {share:.1f} % |", flush=True)  # fmt: skip
        print(f"{data.stem}: done", file=sys.stderr)


if __name__ == "__main__":
    main()
