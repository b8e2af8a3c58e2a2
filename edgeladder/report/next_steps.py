"""What to do next with a run, as exact commands, and the command that repeats it."""

from __future__ import annotations

import shlex
from html import escape

from edgeladder.core.command_line import command, resume_command, train_command
from edgeladder.core.errors import IntegrityError
from edgeladder.core.records import from_json
from edgeladder.core.request import TrainRequest
from edgeladder.report.record import RunRecord

_FEW = 100  # judged pictures below which a share says little


def next_steps(record: RunRecord) -> str:
    """Commands with a line of why; the last one trains the same again."""
    run = record.folder
    steps: list[tuple[str, str]] = []
    if not record.result:
        if record.config:
            steps.append(("this run is not finished; go on with it", resume_command(run)))
    else:
        steps += [
            ("name new pictures", command("predict", "--run", run) + " PICTURES"),
            ("one ONNX file for other programs", command("deploy", "--run", run)),
            ("judge it on other labelled pictures", f"{_judge(record)} FOLDER"),
        ]
    request = _request(record)
    if request is not None:
        steps.append(("train the same again, as a run of its own", train_command(request)))
    parts = [f"<p>{escape(advice)}</p>" for advice in _advice(record)]
    parts += [
        f"<dt>{escape(why)}</dt><dd><pre><code>{escape(line)}</code></pre></dd>"
        for why, line in steps
    ]
    if not parts:
        return '<p class="none">config.yaml is not there</p>'
    paragraphs = len(parts) - len(steps)
    return "".join(parts[:paragraphs]) + f"<dl>{''.join(parts[paragraphs:])}</dl>"


def _judge(record: RunRecord) -> str:
    return shlex.join(["edgeladder", "evaluate", "--run", str(record.folder), "--data"])


def _request(record: RunRecord) -> TrainRequest | None:
    told = record.config.get("request")
    if not isinstance(told, dict):
        return None
    try:
        return from_json(TrainRequest, told, others_keys=True)
    except IntegrityError:
        return None


def _advice(record: RunRecord) -> list[str]:
    """What the numbers suggest."""
    found = []
    evaluation = record.evaluation
    tuned, zero = evaluation.get("accuracy"), evaluation.get("zero_shot_accuracy")
    if evaluation.get("split") == "train":
        found.append(
            "Judged on the pictures it learned from, as there were too few to hold some out: label "
            "more before you trust it."
        )
    elif isinstance(evaluation.get("count"), int) and 0 < evaluation["count"] < _FEW:
        found.append(
            f"Judged on {evaluation['count']} pictures: hold more out before you compare runs."
        )
    if isinstance(tuned, int | float) and isinstance(zero, int | float) and tuned < zero:
        found.append(
            "Training made it worse than names alone: look at the most wrong pictures for wrong "
            "labels, or label more of each class."
        )
    skipped = record.result.get("skipped_inputs")
    if isinstance(skipped, list) and skipped:
        found.append(f"{len(skipped)} pictures could not be read: they are named in result.json.")
    return found
