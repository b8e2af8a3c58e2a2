#!/usr/bin/env python
"""The tables of docs/notes/methods.md from what side_by_side.py wrote.

    tools/bench/peers/table.py tools/bench/results/peers-nano-vit.csv

One table per number of shots: each method's accuracy on each data set (mean over the seeds that all
of its rows have), CPU seconds to a tuned model, and peaks in MB.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

Row = dict[str, str]
_MEGA = 1e6


def mean(rows: list[Row], field: str) -> float | None:
    """Of the rows that have the field; None where no row has."""
    values = [float(row[field]) for row in rows if row.get(field)]
    return sum(values) / len(values) if values else None


def shown(value: float | None, scale: float = 1.0, digits: int = 0) -> str:
    """A cell; a dash where nothing was measured."""
    return "-" if value is None else f"{value * scale:.{digits}f}"


def table(rows: list[Row], share: str = "accuracy") -> str:
    """Markdown, all shots after one another.

    Args:
        rows: of one CSV.
        share: the column of accuracy; `harmonic` for base to new.
    """
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    parts = []
    for shots in dict.fromkeys(row["shots"] for row in rows):
        here = [row for row in rows if row["shots"] == shots]
        seeds = len({row["seed"] for row in here})
        parts.append(f"{shots} shots, {seeds} seed{'s' if seeds > 1 else ''}\n")
        head = ["method", *names, "CPU s", "peak in training MB", "over the loaded model MB"]
        parts.append("| " + " | ".join([*head, "steps", "trained"]) + " |")
        parts.append("|" + "---|" * (len(head) + 2))
        for method in dict.fromkeys(row["method"] for row in here):
            mine = [row for row in here if row["method"] == method]
            shares = [
                shown(mean([r for r in mine if r["dataset"] == name], share), 100, 1)
                for name in names
            ]
            peak, loaded = mean(mine, "train_peak_rss_bytes"), mean(mine, "loaded_rss_bytes")
            over = None if peak is None or loaded is None else peak - loaded
            costs = [shown(mean(mine, "cpu_seconds"), digits=1), shown(peak, 1 / _MEGA)]
            costs += [shown(over, 1 / _MEGA), shown(mean(mine, "steps"))]
            cells = [method, *shares, *costs, shown(mean(mine, "trained_parameters"))]
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--share", default="accuracy", help="column, e.g. harmonic")
    given = parser.parse_args()
    with given.results.open(newline="") as file:
        print(table(list(csv.DictReader(file)), given.share))


if __name__ == "__main__":
    main()
