#!/usr/bin/env python
"""Tables and a plot of few-shot results; SVG written by hand, so that nothing need be installed.

    tools/bench/figures.py tools/bench/results/few-shot.csv --plot docs/notes/few-shot.svg \
        --methods "zero-shot" "ProLIP" "default" --datasets flowers5 rsscn7 clothing

    tools/bench/figures.py rows/results.csv --against plain    # differences to one row

Reads one or more results.csv of fewshot.py; prints the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.line_plot import line_plot  # noqa: E402
from tools.bench.result_rows import Row, read  # noqa: E402


def means(rows: Iterable[Row]) -> dict[tuple[str, int], tuple[float, float]]:
    """Per method and shots: mean over data sets of the mean over seeds, and its standard error.

    The error is that of the seeds, data sets being given: sqrt(sum of variances of the data
    sets' means) / number of data sets.
    """
    groups: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in rows:
        key = str(row["method"]), int(str(row["shots"]))
        groups.setdefault(key, {}).setdefault(str(row["dataset"]), []).append(
            100 * float(str(row["accuracy"]))
        )
    found = {}
    for key, sets in groups.items():
        found[key] = mean_and_error(sets)
    return found


def mean_and_error(sets: Mapping[str, list[float]]) -> tuple[float, float]:
    """Mean over data sets of the mean over seeds, and its standard error: see `means`."""
    variances = [np.var(v, ddof=1) / len(v) if len(v) > 1 else 0.0 for v in sets.values()]
    mean = float(np.mean([np.mean(v) for v in sets.values()]))
    return mean, float(np.sqrt(sum(variances)) / len(sets))


def table(rows: list[Row]) -> str:
    """Markdown: means over the data sets, then one table per data set."""
    names = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    parts = [_one(rows, f"Mean of {', '.join(names)}")] if len(names) > 1 else []
    parts += [_one([r for r in rows if r["dataset"] == name], name) for name in names]
    return "\n".join(parts)


def differences(rows: list[Row], reference: str) -> str:
    """Markdown: each method's accuracy minus the reference's, paired by data set, shots, seed."""

    def place(row: Row) -> tuple[str, str, str]:
        return str(row["dataset"]), str(row["shots"]), str(row["seed"])

    base = {place(r): float(str(r["accuracy"])) for r in rows if r["method"] == reference}
    paired = [
        {**row, "accuracy": float(str(row["accuracy"])) - base[place(row)]}
        for row in rows
        if row["method"] != reference and place(row) in base
    ]
    names = ", ".join(dict.fromkeys(str(row["dataset"]) for row in paired))
    return _one(paired, f"Difference to {reference}, mean of {names}", signed=True)


def _one(rows: list[Row], title: str, *, signed: bool = False) -> str:
    found = means(rows)
    shots = sorted({k for _, k in found})
    methods = list(dict.fromkeys(method for method, _ in found))
    lines = [f"### {title}", "", "| method | " + " | ".join(map(str, shots)) + " |"]
    lines.append("|---" * (len(shots) + 1) + "|")
    for method in methods:
        cells = []
        for k in shots:
            if (method, k) not in found:
                cells.append("")
                continue
            mean, error = found[method, k]
            best = max(v[0] for (_, s), v in found.items() if s == k)
            text = f"{mean:{'+' if signed else ''}.1f} ± {error:.1f}"
            cells.append(f"**{text}**" if mean >= best - 1e-9 and not signed else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def plot(rows: list[Row]) -> str:
    """Accuracy over shots, one line per method."""
    lines: dict[str, dict[float, float]] = {}
    for (method, shots), (mean, _) in means(rows).items():
        lines.setdefault(method, {})[shots] = mean
    return line_plot(lines, "shots; accuracy in percent", step=5)


def _place(key: str, names: list[str], row: Row) -> int:
    return names.index(str(row[key]))


def main() -> None:
    """Print tables, draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path, help="file to draw, .svg")
    parser.add_argument("--methods", nargs="+", help="these alone, in this order")
    parser.add_argument("--datasets", nargs="+", help="these alone, in this order")
    parser.add_argument("--against", help="a row: print the others' differences to it")
    parser.add_argument("--part", help="validation or test, of what validate.py wrote")
    arguments = parser.parse_args()
    rows = [row for path in arguments.results for row in read(path)]
    rows = [row for row in rows if arguments.part in (None, row.get("part"))]
    for key, names in (("dataset", arguments.datasets), ("method", arguments.methods)):
        if names:
            rows = [row for row in rows if row[key] in names]
            rows.sort(key=partial(_place, key, names))
    print(differences(rows, arguments.against) if arguments.against else table(rows))
    if arguments.plot:
        arguments.plot.write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
