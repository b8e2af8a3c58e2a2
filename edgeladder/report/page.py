"""The report: one self-contained HTML page per run, readable on a phone and offline.

No script, no font, no picture from elsewhere: styles are in the page, charts are inline SVG.
"""

from __future__ import annotations

import datetime
from html import escape
from pathlib import Path
from typing import Any

import yaml

from edgeladder import __version__
from edgeladder.core.errors import IntegrityError
from edgeladder.core.files import write_text
from edgeladder.core.intervals import interval_text
from edgeladder.core.ownership import GENERATOR, require_ours
from edgeladder.core.printable import printable
from edgeladder.core.sizes import format_size
from edgeladder.report.charts import bar_rows, confusion_matrix, line_chart
from edgeladder.report.elements import folded, none, percent, section, table
from edgeladder.report.memory_time import memory_over_time
from edgeladder.report.next_steps import next_steps
from edgeladder.report.record import RunRecord, memory_of, read_run
from edgeladder.report.reliability import reliability
from edgeladder.report.style import STYLE
from edgeladder.report.taught import taught
from edgeladder.report.thumbnails import notable_pictures

REPORT = "report.html"
_MATRIX_CLASSES = 40  # beyond this a matrix is a grey square: the commonest mistakes instead
_BAR_CLASSES = 40
_MISTAKES = 20
_EVENTS = 200


def write_report(
    run: Path, out: Path | None = None, *, title: str | None = None, pictures: bool = True
) -> Path:
    """Write the report of a run directory.

    Args:
        run: the run's folder; sections whose data is not there say so.
        out: the page; None: `report.html` in the run.
        title: None: the run's own name.
        pictures: embed thumbnails of the most wrong and the most improved ones.

    Returns:
        The page's path.

    Raises:
        ConfigError: there is no run, or the page's path holds what is no report.
        IntegrityError: what the run's files say is of another kind than a run writes.
        StorageError: no space left.
    """
    path = Path(out) if out is not None else Path(run) / REPORT
    require_ours(path, "page")
    try:
        text = render(read_run(Path(run)), title, pictures=pictures)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise IntegrityError(
            f"a record of this run is not what a run writes: {type(error).__name__}: {error}",
            where=str(run),
            remedy="see its result.json, plan.json and metrics.jsonl, or train again",
        ) from error
    write_text(path, printable(text))
    return path


def render(record: RunRecord, title: str | None = None, *, pictures: bool = True) -> str:
    """The page as text, with thumbnails or without."""
    name = record.folder.resolve().name if title is None else title
    sections = [
        _headline(record),
        section("What next", next_steps(record)),
        *([section("Pictures", notable_pictures(record))] if pictures else []),
        section("Loss", _loss(record)),
        section("Memory", _memory(record)),
        section("Memory over time", memory_over_time(record)),
        *taught(record),
        section("Per class", _per_class(record)),
        section("Probabilities", reliability(record)),
        section("Confusion", _confusion(record)),
        section("Memory limit and watchdog", _events(record)),
        section("Configuration", _configuration(record)),
        section("Environment", _pairs({**record.environment, **_tower(record)})),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{GENERATOR}\n"
        f"<title>{escape(name)} · EdgeLadder</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(name)}</h1><p>{escape(_subtitle(record))}</p></header>\n<main>\n"
        + "\n".join(sections)
        + f"\n</main>\n<footer>EdgeLadder {escape(__version__)}</footer>\n</body>\n</html>\n"
    )


def _subtitle(record: RunRecord) -> str:
    model = record.adapter.get("model")
    if isinstance(model, dict):
        model = model.get("name")
    profile = record.adapter.get("profile") or {}
    parts = [str(model or ""), str(profile.get("name", "")) if isinstance(profile, dict) else ""]
    parts.append(str(record.adapter.get("created") or ""))
    return " · ".join(part for part in parts if part) or "run"


def _headline(record: RunRecord) -> str:
    accuracy = record.result.get("accuracy") or {}
    tuned = record.evaluation.get("accuracy", accuracy.get("tuned"))
    zero = record.evaluation.get("zero_shot_accuracy", accuracy.get("zero_shot"))
    split = record.evaluation.get("split", accuracy.get("split"))
    speed = record.result.get("throughput") or {}
    count = record.evaluation.get("count") or accuracy.get("count") or 0
    tiles = [
        (_beside("tuned", tuned, count), percent(tuned)),
        (_beside("zero-shot", zero, count), percent(zero)),
    ]
    if isinstance(tuned, int | float) and isinstance(zero, int | float):
        tiles.append(("gain, points", f"{100 * (tuned - zero):+.1f}"))
    if split:
        tiles.append(("split", str(split)))
    if record.evaluation.get("count"):
        tiles.append(("pictures judged", str(record.evaluation["count"])))
    for key, label in (("steps", "steps"), ("engine", "engine"), ("seed", "seed")):
        if record.result.get(key) is not None:
            tiles.append((label, str(record.result[key])))
    tower = record.result.get("provider")
    if isinstance(tower, dict) and tower.get("name"):
        tiles.append(("image tower on", str(tower["name"])))
    if speed.get("step_ms_median"):
        tiles.append(("median step", f"{speed['step_ms_median']:.0f} ms"))
    peak = max(
        (p.get("measured_peak_bytes") or 0 for p in memory_of(record)["phases"].values()),
        default=0,
    )
    if peak:
        tiles.append(("peak memory", format_size(peak)))
    skipped = record.result.get("skipped_inputs")
    if skipped:
        number = len(skipped) if isinstance(skipped, list) else skipped
        tiles.append(("pictures skipped", str(number)))
    body = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in tiles
    )
    return f'<section class="tiles">{body}</section>'


def _beside(label: str, share: Any, count: Any) -> str:
    """A tile's label with the interval of its accuracy."""
    known = isinstance(share, int | float) and isinstance(count, int)
    ends = interval_text(share, count) if known else ""
    return f"{label} ({ends})" if ends else label


def _loss(record: RunRecord) -> str:
    if not record.losses:
        return none("no steps were recorded")
    first, last = record.losses[0], record.losses[-1]
    chart = line_chart(record.losses, x_label="step", label="training loss by step")
    return chart + (
        f"<p>{len(record.losses)} steps; loss {first[1]:.4g} at step {first[0]:g}, "
        f"{last[1]:.4g} at step {last[0]:g}. Thin: each step; thick: running mean.</p>"
    )


def _memory(record: RunRecord) -> str:
    memory = memory_of(record)
    phases = memory["phases"]
    if not phases:
        return none("no phase was planned or measured")
    budget = memory.get("budget_bytes")
    peaks = [
        (name, (p.get("planned_peak_bytes"), p.get("measured_peak_bytes")))
        for name, p in phases.items()
    ]
    sizes = [size for _, pair in peaks for size in pair if size]
    limit = 1.02 * max([*sizes, budget or 0, 1])
    words = [[format_size(size) if size else "" for size in pair] for _, pair in peaks]
    chart = bar_rows(
        peaks,
        kinds=("planned", "measured"),
        limit=limit,
        texts=words,
        label="planned and measured peak memory by phase",
        mark=(budget, f"budget {format_size(budget)}") if budget else None,
    )
    rows = [
        (
            name,
            *(format_size(size) if size else "–" for size in pair),
            percent((pair[1] or 0) / budget) if budget and pair[1] else "–",
        )
        for name, pair in peaks
    ]
    legend = '<p class="legend"><i class="planned"></i>planned <i class="measured"></i>measured'
    legend += f" · enforcement: {escape(_words(memory.get('enforcement')))}</p>"
    return chart + legend + table(("phase", "planned", "measured", "of the budget"), rows)


def _per_class(record: RunRecord) -> str:
    per_class = record.evaluation.get("per_class") or {}
    classes = [{"class": name, **values} for name, values in per_class.items()]
    if not classes:
        return none("not evaluated per class")
    shown = classes
    note = ""
    if len(classes) > _BAR_CLASSES:
        shown = sorted(classes, key=lambda c: c.get("accuracy") or 0.0)[:_BAR_CLASSES]
        note = f"<p>The {_BAR_CLASSES} weakest of {len(classes)} classes; all are in the table.</p>"
    chart = bar_rows(
        [(c["class"], (c.get("zero_shot_accuracy"), c.get("accuracy"))) for c in shown],
        kinds=("planned", "measured"),
        limit=1.0,
        texts=[[percent(c.get("zero_shot_accuracy")), percent(c.get("accuracy"))] for c in shown],
        label="accuracy by class, zero-shot and tuned",
    )
    legend = '<p class="legend"><i class="planned"></i>zero-shot <i class="measured"></i>tuned</p>'
    numbers = table(
        ("class", "pictures", "zero-shot", "tuned", "95 % interval"),
        [
            (
                c["class"],
                str(c.get("count", "")),
                percent(c.get("zero_shot_accuracy")),
                percent(c.get("accuracy")),
                interval_text(c.get("accuracy"), c.get("count") or 0) or "–",
            )
            for c in classes
        ],
    )
    return chart + legend + note + folded("all classes", numbers)


def _confusion(record: RunRecord) -> str:
    counts = record.evaluation.get("confusion") or []
    names = record.evaluation.get("classes") or list(record.evaluation.get("per_class") or {})
    if not counts or len(names) != len(counts):
        return none("no confusion matrix was recorded")
    mistakes = sorted(
        (
            (count, names[i], names[j])
            for i, row in enumerate(counts)
            for j, count in enumerate(row)
            if i != j and count
        ),
        key=lambda item: -item[0],
    )
    numbers = table(
        ("true", "taken for", "pictures"),
        [(true, taken, str(count)) for count, true, taken in mistakes[:_MISTAKES]],
    )
    if len(names) > _MATRIX_CLASSES:
        return f"<p>{len(names)} classes: the {_MISTAKES} commonest mistakes.</p>{numbers}"
    chart = confusion_matrix(names, counts, "confusion matrix: rows true, columns predicted")
    note = "<p>Rows: true class; columns: predicted; darker: a larger share of the row.</p>"
    return chart + note + folded("commonest mistakes", numbers)


def _events(record: RunRecord) -> str:
    events = [event for event in record.events if event.get("kind") != "limit"]
    body = _limit(record)
    if not events:
        return body + none("nothing had to be done: no threshold was crossed")
    rows = [
        (
            _clock(event.get("time")),
            str(event.get("kind", "")),
            ", ".join(
                f"{_label(key)} {_value(key, value)}"
                for key, value in event.items()
                if key not in ("time", "kind")
            ),
        )
        for event in events[-_EVENTS:]
    ]
    return body + table(("time (UTC)", "event", "what"), rows)


def _limit(record: RunRecord) -> str:
    """Which limit of the kernel's held in which phases; what this machine lacks, folded away."""
    held: dict[tuple[str, str], list[str]] = {}
    lacking: list[str] = []
    for event in record.events:
        if event.get("kind") == "limit":
            size = _value("confirmed", event.get("confirmed") or event.get("limit_bytes"))
            phases = held.setdefault((str(event.get("layer")), size), [])
            phases += [str(event["phase"])] if event.get("phase") not in (None, *phases) else []
            notes = event.get("notes")
            lacking += [str(note) for note in notes] if isinstance(notes, list) else []
    if not held:
        limit = record.environment.get("limit") or memory_of(record).get("enforcement")
        return f"<p>Limit: {escape(_words(limit))}.</p>"
    parts = [
        f"{layer} held {', '.join(phases)} at {size}, read back from the kernel"
        for (layer, size), phases in held.items()
    ]
    body = f"<p>Limit: {escape('; '.join(parts))}.</p>"
    if not lacking:
        return body
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(lacking))
    return body + folded("other limits, which this machine does not offer", f"<ul>{items}</ul>")


def _configuration(record: RunRecord) -> str:
    if not record.config:
        return none("config.yaml is not there")
    text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    plan = {k: v for k, v in record.plan.items() if not isinstance(v, dict | list)}
    return _pairs(plan, empty="") + folded("config.yaml", f"<pre>{escape(text)}</pre>")


def _tower(record: RunRecord) -> dict[str, Any]:
    """What ran the image tower, and why."""
    tower = record.result.get("provider")
    if not isinstance(tower, dict) or not tower.get("name"):
        return {}
    reason = f": {tower['reason']}" if tower.get("reason") else ""
    return {"image tower on": f"{tower['name']}{reason}"}


def _pairs(values: dict[str, Any], empty: str = "not recorded") -> str:
    if not values:
        return none(empty) if empty else ""
    rows = [(_label(key), _value(key, value)) for key, value in values.items()]
    return table(("", ""), rows, head=False)


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _value(key: str, value: Any) -> str:
    size = key.endswith("_bytes") or key == "confirmed"  # the kernel's limit, as read back
    if size and isinstance(value, int | float) and not isinstance(value, bool):
        return format_size(value)
    return _words(value)


def _words(value: Any) -> str:
    """A value of a JSON file as words a reader takes in."""
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        parts = (f"{_label(str(key))} {_value(str(key), v)}" for key, v in value.items())
        return ", ".join(parts) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_words(v) for v in value) or "none"
    return str(value)


def _clock(stamp: Any) -> str:
    if not isinstance(stamp, int | float):
        return str(stamp or "")
    try:
        moment = datetime.datetime.fromtimestamp(stamp, datetime.timezone.utc)
    except (OSError, OverflowError, ValueError):  # beyond the calendar: a damaged record
        return str(stamp)
    return moment.strftime("%Y-%m-%d %H:%M:%S")
