"""The report's section on pictures without a label: how many taught, and what they changed."""

from __future__ import annotations

from html import escape

from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.job import PseudoLabelResult
from edgeladder.core.records import from_json
from edgeladder.report.charts import bar_rows
from edgeladder.report.elements import section
from edgeladder.report.record import RunRecord

_BAR_CLASSES = 40


def taught(record: RunRecord) -> list[str]:
    """The section in a list; none of a run without such pictures."""
    told = record.result.get("unlabelled")
    if told is None:
        return []
    try:
        found = from_json(PseudoLabelResult, told, others_keys=True)
    except EdgeLadderError:  # not what a run writes
        return []
    body = f"<p>{escape(found.told())}.</p>"
    rows = [(name, count) for name, count in found.classes.items() if count]
    if 0 < len(rows) <= _BAR_CLASSES:
        body += "<p>Labels they were given by the head of the labelled pictures:</p>" + bar_rows(
            [(name, (float(count),)) for name, count in rows],
            kinds=("measured",),
            limit=float(max(count for _, count in rows)),
            texts=[[str(count)] for _, count in rows],
            label="labels given to unlabelled pictures, by class",
        )
    return [section("Pictures without a label", body)]
