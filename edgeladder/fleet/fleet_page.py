"""One page for the fleet: accuracy before and after per box, peaks against budgets, failures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgeladder import __version__
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import read_json, write_text
from edgeladder.core.ownership import GENERATOR, require_ours
from edgeladder.core.sizes import format_size
from edgeladder.fleet.pull import RECORD, failures
from edgeladder.report.charts import bar_rows
from edgeladder.report.page import percent
from edgeladder.report.style import STYLE


def write(out: Path, job: str, page: Path | None = None) -> tuple[Path, list[dict[str, Any]]]:
    """Write the page of a job's pulled runs to `OUT/JOB/report.html`.

    Returns:
        The page and its rows, one per host, those among them of which nothing came.

    Raises:
        ConfigError: nothing was pulled of this job, or the page's path holds what is no report.
    """
    folder = out / job / "hosts"
    failed = failures(out, job)
    hosts = sorted({path.parent.name for path in folder.glob(f"*/{RECORD}")} | set(failed))
    if not hosts:
        raise ConfigError(
            f"nothing was pulled of job {job}",
            where=str(out / job),
            remedy=f"edgeladder fleet pull --job {job}",
        )
    rows = [host_row(folder / name, failed.get(name)) for name in hosts]
    average = out / job / "average" / "aggregate.json"
    combined = read_json(average) if average.is_file() else {}
    option = "--page" if page is not None else "--out"
    page = page or out / job / "report.html"
    require_ours(page, "page", option=option)
    write_text(page, render(job, rows, combined))
    return page, rows


def host_row(folder: Path, failure: str | None = None) -> dict[str, Any]:
    """What the page says about one host; whatever a box sent is taken for plain text or numbers.

    Args:
        folder: what was pulled of it, if anything was.
        failure: why the fleet's last call failed there.
    """
    record_file = folder / RECORD
    record = read_json(record_file) if record_file.is_file() else {"state": "nothing pulled"}
    result_file = folder / "result.json"
    result = read_json(result_file) if result_file.is_file() and result_file.stat().st_size else {}
    accuracy = _object(result.get("accuracy"))
    memory = _object(result.get("memory"))
    peaks = [
        _number(_object(phase).get("measured_peak_bytes"))
        for phase in _object(memory.get("phases")).values()
    ]
    error = _object(result.get("error"))
    exit_code = record.get("exit_code")
    if record["state"] != "done":
        said = error.get("message") or failure or f"{record['state']}, exit code {exit_code}"
        failure = str(said)
    tuned = accuracy.get("tuned") if accuracy else result.get("accuracy")
    return {
        "host": folder.name,
        "state": record["state"],
        "zero_shot": _number(accuracy.get("zero_shot", result.get("zero_shot_accuracy"))),
        "tuned": _number(tuned),
        "steps": _number(result.get("steps")),
        "budget_bytes": _number(memory.get("budget_bytes")),
        "peak_bytes": max((p for p in peaks if p is not None), default=None),
        "enforcement": str(memory.get("enforcement") or ""),
        "failure": failure,
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known and math.isfinite(value) else None


def render(job: str, rows: list[dict[str, Any]], combined: dict[str, Any]) -> str:
    """The page as text."""
    refused = _object(combined.get("refused"))
    sections = [
        _headline(rows, refused),
        _section("Accuracy on each box's own test pictures", _accuracy(rows)),
        _section("Peak memory against the budget", _memory(rows)),
        _section("Average", _average(combined)),
        _section("Failures", _failures(rows, refused)),
        _section("All boxes", _table(rows)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{GENERATOR}\n"
        f"<title>{escape(job)} · EdgeLadder fleet</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<header><h1>{escape(job)}</h1><p>{len(rows)} boxes</p></header>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<footer>EdgeLadder {escape(__version__)}</footer>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _headline(rows: list[dict[str, Any]], refused: dict[str, Any]) -> str:
    both = [r for r in rows if r["zero_shot"] is not None and r["tuned"] is not None]
    over = [r for r in rows if r["budget_bytes"] and (r["peak_bytes"] or 0) > r["budget_bytes"]]
    tiles = [
        ("boxes done", f"{sum(r['state'] == 'done' for r in rows)} of {len(rows)}"),
        ("adapters refused", str(len(refused))),
        ("over their budget", str(len(over))),
    ]
    if both:
        before = sum(r["zero_shot"] for r in both) / len(both)
        after = sum(r["tuned"] for r in both) / len(both)
        tiles += [("mean zero-shot", percent(before)), ("mean tuned", percent(after))]
    body = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in tiles
    )
    return f'<section class="tiles">{body}</section>'


def _accuracy(rows: list[dict[str, Any]]) -> str:
    known = [r for r in rows if r["zero_shot"] is not None or r["tuned"] is not None]
    if not known:
        return '<p class="none">no box reported an accuracy</p>'
    legend = '<p class="legend"><i class="planned"></i>zero-shot <i class="measured"></i>tuned</p>'
    return legend + bar_rows(
        [(r["host"], (r["zero_shot"], r["tuned"])) for r in known],
        kinds=("planned", "measured"),
        limit=1.0,
        texts=[[percent(r["zero_shot"]), percent(r["tuned"])] for r in known],
        label="accuracy per box, before and after",
    )


def _memory(rows: list[dict[str, Any]]) -> str:
    known = [r for r in rows if r["peak_bytes"] is not None]
    if not known:
        return '<p class="none">no box reported a peak</p>'
    sizes = [(r["budget_bytes"], r["peak_bytes"]) for r in known]
    legend = '<p class="legend"><i class="planned"></i>budget <i class="measured"></i>peak</p>'
    return legend + bar_rows(
        [(r["host"], pair) for r, pair in zip(known, sizes, strict=True)],
        kinds=("planned", "measured"),
        limit=1.02 * max(size or 0 for pair in sizes for size in pair) or 1.0,
        texts=[[format_size(size) if size else "" for size in pair] for pair in sizes],
        label="peak memory per box against its budget",
    )


def _average(combined: dict[str, Any]) -> str:
    weights = _object(combined.get("weights"))
    if not weights:
        return ""
    cells = [(name, percent(weight)) for name, weight in weights.items()]
    words = {"mean": "weighted by pictures", "trimmed": "trimmed mean", "median": "median"}
    method = words.get(str(combined.get("method")), str(combined.get("method")))
    return f"<p>{len(weights)} adapters, {escape(method)}.</p>" + _cells(("box", "weight"), cells)


def _failures(rows: list[dict[str, Any]], refused: dict[str, Any]) -> str:
    known = {str(name): f"adapter refused: {why}" for name, why in refused.items()}
    known |= {r["host"]: r["failure"] for r in rows if r["failure"]}
    if not known:
        return '<p class="none">none</p>'
    return _cells(("box", "what happened"), sorted(known.items()))


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [
        (
            r["host"],
            r["state"],
            percent(r["zero_shot"]),
            percent(r["tuned"]),
            format_size(r["peak_bytes"]) if r["peak_bytes"] else "–",
            format_size(r["budget_bytes"]) if r["budget_bytes"] else "–",
            r["enforcement"],
        )
        for r in rows
    ]
    return _cells(("box", "state", "zero-shot", "tuned", "peak", "budget", "fence"), cells)


def _cells(header: tuple[str, ...], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
