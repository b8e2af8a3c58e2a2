"""One row about a run of the demo, for tools/pythons and tools/arm64.

python tools/demo_row.py ANSWER.json CELL...     the cells, then what `edgeladder demo --json` said
python tools/demo_row.py --header CELL...        the table's head
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TOLD = ("zero-shot", "tuned", "seconds", "steps", "peak, MB", "planned, MB", "budget", "held by")


def row(cells: list[str]) -> str:
    """A line of a markdown table."""
    return f"| {' | '.join(cells)} |"


def told(values: dict[str, Any]) -> list[str]:
    """What a demo's answer says under `TOLD`."""
    accuracy, memory = values["accuracy"], values["memory"]
    phases = memory["phases"].values()
    return [
        f"{100 * accuracy['zero_shot']:.1f} %",
        f"{100 * accuracy['tuned']:.1f} %",
        f"{values['seconds']:.0f}",
        str(values["steps"]),
        f"{max(phase['measured_peak_bytes'] for phase in phases) / 1e6:.0f}",
        f"{max(phase['planned_peak_bytes'] for phase in phases) / 1e6:.0f}",
        f"{memory['budget_bytes'] / 1e6:.0f} MB",
        str(memory["enforcement"]),
    ]


def main() -> None:
    """Print a row or a head."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    file, cells = sys.argv[1], sys.argv[2:]
    if file == "--header":
        print(row([*cells, *TOLD]))
        print(row(["---"] * (len(cells) + len(TOLD))).replace(" ", ""))
    else:
        print(row([*cells, *told(json.loads(Path(file).read_text(encoding="utf-8")))]))


if __name__ == "__main__":
    main()
