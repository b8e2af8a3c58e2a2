"""One page for the fleet: accuracy before and after per box, peaks against budgets, failures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from edgeladder import __version__
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import write_text
from edgeladder.core.intervals import Interval, interval_text, of_share
from edgeladder.core.ownership import GENERATOR, require_ours
from edgeladder.core.printable import printable
from edgeladder.core.sizes import format_size
from edgeladder.fleet.averaging import AggregateResult
from edgeladder.fleet.pulled import FAILURES, RECORD, PulledResult, PullRecord, reasons
from edgeladder.report.charts import bar_rows
from edgeladder.report.elements import percent
from edgeladder.report.style import STYLE


@dataclass(frozen=True)
class HostRow:
    """What the page says about one host; numbers are None where the box did not say."""

    host: str
    state: str
    zero_shot: float | None
    tuned: float | None
    count: int | None  # of test pictures
    interval: Interval | None  # Wilson's 95 % of `tuned`
    steps: float | None
    budget_bytes: float | None
    peak_bytes: float | None
    enforcement: str
    failure: str | None
    unlabelled: int | None = None  # pictures without a label that taught


def write(out: Path, job: str, page: Path | None = None) -> tuple[Path, list[HostRow]]:
    """Write the page of a job's pulled runs to `OUT/JOB/report.html`.

    Returns:
        The page and its rows, one per host, those among them of which nothing came.

    Raises:
        ConfigError: nothing was pulled of this job, or the page's path holds what is no report.
    """
    folder = out / job / "hosts"
    failed = reasons(out, job, FAILURES)
    hosts = sorted({path.parent.name for path in folder.glob(f"*/{RECORD}")} | set(failed))
    if not hosts:
        raise ConfigError(
            f"nothing was pulled of job {job}",
            where=str(out / job),
            remedy=f"edgeladder fleet pull --job {job}",
        )
    rows = [host_row(folder / name, failed.get(name)) for name in hosts]
    average = AggregateResult.read(out / job / "average") or AggregateResult("mean")
    option = "--page" if page is not None else "--out"
    page = page or out / job / "report.html"
    require_ours(page, "page", option=option)
    write_text(page, printable(render(job, rows, average)))
    return page, rows


def host_row(folder: Path, failure: str | None = None) -> HostRow:
    """What the page says about one host.

    Args:
        folder: what was pulled of it, if anything was.
        failure: why the fleet's last call failed there.
    """
    record = PullRecord.read(folder) or PullRecord("nothing pulled")
    result = PulledResult.read(folder)
    if record.state != "done":
        ended = f"{record.state}, exit code {record.exit_code}"
        failure = result.error or failure or ended
    return HostRow(
        host=folder.name,
        state=record.state,
        zero_shot=result.zero_shot,
        tuned=result.tuned,
        count=result.test_count,
        interval=of_share(result.tuned, result.test_count or 0),
        steps=result.steps,
        budget_bytes=result.budget_bytes,
        peak_bytes=result.peak_bytes,
        enforcement=result.enforcement,
        failure=failure,
        unlabelled=result.unlabelled,
    )


def render(job: str, rows: list[HostRow], average: AggregateResult) -> str:
    """The page as text."""
    sections = [
        _headline(rows, average.refused),
        _section("Accuracy on each box's own test pictures", _accuracy(rows)),
        _section("Peak memory against the budget", _memory(rows)),
        _section("Average", _average(average)),
        _section("Failures", _failures(rows, average.refused)),
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


def _headline(rows: list[HostRow], refused: dict[str, str]) -> str:
    judged = [r for r in rows if r.zero_shot is not None and r.tuned is not None]
    before = [r.zero_shot for r in judged if r.zero_shot is not None]
    after = [r.tuned for r in judged if r.tuned is not None]
    pictures = sum(r.count or 0 for r in judged)
    over = [r for r in rows if r.budget_bytes and (r.peak_bytes or 0) > r.budget_bytes]
    tiles = [
        ("boxes done", f"{sum(r.state == 'done' for r in rows)} of {len(rows)}"),
        ("adapters refused", str(len(refused))),
        ("over their budget", str(len(over))),
    ]
    if before:
        tiles += [
            ("zero-shot, mean of boxes", percent(sum(before) / len(before))),
            ("tuned, mean of boxes", percent(sum(after) / len(after))),
            ("test pictures", str(pictures) if pictures else "–"),
        ]
    body = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in tiles
    )
    return f'<section class="tiles">{body}</section>'


def _accuracy(rows: list[HostRow]) -> str:
    known = [r for r in rows if r.zero_shot is not None or r.tuned is not None]
    if not known:
        return '<p class="none">no box reported an accuracy</p>'
    legend = '<p class="legend"><i class="planned"></i>zero-shot <i class="measured"></i>tuned</p>'
    return legend + bar_rows(
        [(r.host, (r.zero_shot, r.tuned)) for r in known],
        kinds=("planned", "measured"),
        limit=1.0,
        texts=[[percent(r.zero_shot), percent(r.tuned)] for r in known],
        label="accuracy per box, before and after",
    )


def _memory(rows: list[HostRow]) -> str:
    known = [r for r in rows if r.peak_bytes is not None]
    if not known:
        return '<p class="none">no box reported a peak</p>'
    sizes = [(r.budget_bytes, r.peak_bytes) for r in known]
    legend = '<p class="legend"><i class="planned"></i>budget <i class="measured"></i>peak</p>'
    return legend + bar_rows(
        [(r.host, pair) for r, pair in zip(known, sizes, strict=True)],
        kinds=("planned", "measured"),
        limit=1.02 * max(size or 0 for pair in sizes for size in pair) or 1.0,
        texts=[[format_size(size) if size else "" for size in pair] for pair in sizes],
        label="peak memory per box against its budget",
    )


def _average(average: AggregateResult) -> str:
    if not average.weights:
        return ""
    cells = [(name, percent(weight)) for name, weight in average.weights.items()]
    words = {"mean": "weighted by pictures", "trimmed": "trimmed mean", "median": "median"}
    said = f"<p>{len(average.weights)} adapters, {words[average.method]}.</p>"
    return said + _cells(("box", "weight"), cells)


def _failures(rows: list[HostRow], refused: dict[str, str]) -> str:
    known = {name: f"adapter refused: {why}" for name, why in refused.items()}
    known |= {r.host: r.failure for r in rows if r.failure}
    if not known:
        return '<p class="none">none</p>'
    return _cells(("box", "what happened"), sorted(known.items()))


def _table(rows: list[HostRow]) -> str:
    cells = [
        (
            r.host,
            r.state,
            percent(r.zero_shot),
            percent(r.tuned),
            interval_text(r.tuned, r.count or 0) or "–",
            "–" if r.count is None else r.count,
            "–" if r.unlabelled is None else r.unlabelled,
            format_size(r.peak_bytes) if r.peak_bytes else "–",
            format_size(r.budget_bytes) if r.budget_bytes else "–",
            r.enforcement,
        )
        for r in rows
    ]
    columns = (
        "box", "state", "zero-shot", "tuned", "95 % interval", "pictures", "unlabelled, taught",
        "peak", "budget", "limit",
    )  # fmt: skip
    return _cells(columns, cells)


def _cells(header: tuple[str, ...], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
