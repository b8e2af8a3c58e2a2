"""`edgeladder evaluate`, `predict`, `deploy`: what a trained run is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgeladder.cli import csv_text, options
from edgeladder.cli.from_stdin import as_asked, spelt_out
from edgeladder.cli.output import Answer, table
from edgeladder.cli.progress import Progress
from edgeladder.core.intervals import interval_text, with_interval
from edgeladder.core.provider import check_provider
from edgeladder.core.sizes import format_size

RunBundle = Annotated[Path | None, typer.Option("--bundle", help="Bundle. [default: the run's]")]

Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="NAMES",
        help="Names to choose among, new ones too: a,b,c, a YAML file like classes.yaml, or "
        "pictures whose class folders are meant. [default: the trained ones]",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (evaluate, predict, deploy):
        app.command()(command)


def evaluate(
    run: options.Served = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Pictures. [default: what the run trained on]")
    ] = None,
    bundle: RunBundle = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Cached activations. [default: the run's]")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, validation or test. [test if there is one]"),
    ] = None,
    classes: Classes = None,
    device: options.Device = None,
    budget: options.Budget = None,
    provider: options.Provider = "auto",
    as_csv: options.Csv = False,
    as_json: options.Json = False,
) -> Answer:
    """Accuracy of a run on labelled pictures, by class too."""
    csv_text.require_one(as_csv, as_json)
    place = {**_place(run, bundle, device, budget), "provider": check_provider(provider)}
    with Progress() as progress:
        values = _answer(
            "evaluate",
            {
                **place,
                "data": _text(data),
                "cache": _text(cache),
                "split": split,
                "classes": classes,
            },
            progress,
        )
    return Answer(values, lambda: csv_text.accuracies(values) if as_csv else _evaluated(values))


def predict(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, folders; - reads stdin.")],
    run: options.Served = None,
    bundle: RunBundle = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels per picture.")] = 1,
    classes: Classes = None,
    device: options.Device = None,
    budget: options.Budget = None,
    provider: options.Provider = "auto",
    as_csv: options.Csv = False,
    as_json: options.Json = False,
) -> Answer:
    """Labels and probabilities for pictures."""
    csv_text.require_one(as_csv, as_json)
    place = {**_place(run, bundle, device, budget), "provider": check_provider(provider)}
    with spelt_out(paths) as found, Progress() as progress:
        asked = {"paths": found, "top": top, "classes": classes}
        values = _answer("predict", {**place, **asked}, progress)
    for item in values["predictions"]:
        item["path"] = as_asked(item["path"], paths)
    return Answer(values, lambda: csv_text.predictions(values) if as_csv else _predicted(values))


def deploy(
    run: options.Served = None,
    bundle: RunBundle = None,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")] = Path("model.onnx"),
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, fp16 or int8-weights.")] = "fp32",
    portable: Annotated[
        bool,
        typer.Option("--portable", help="Standard ONNX operators alone: any runtime reads it."),
    ] = False,
    include_resize: Annotated[
        bool,
        typer.Option("--include-resize", help="Pictures of any size: the file resizes them."),
    ] = False,
    output: Annotated[
        str,
        typer.Option("--output", help="probabilities, or embedding (for a search index)."),
    ] = "probabilities",
    classes: Classes = None,
    device: options.Device = None,
    budget: options.Budget = None,
    as_json: options.Json = False,
) -> Answer:
    """One ONNX file of a run: picture in, probabilities (or an embedding) out."""
    from edgeladder.core.inference import Form

    place = _place(run, bundle, device, budget)
    form = Form(dtype=dtype, output=output, portable=portable, include_resize=include_resize)
    values = _answer("deploy", {**place, "out": str(out), "form": form, "classes": classes})
    return Answer(values, lambda: _deployed(values))


def _place(
    run: Path | None, bundle: Path | None, device: str | None, budget: str | None
) -> dict[str, Any]:
    """What all three commands are told: of which run, and within what."""
    return {
        "run": str(options.served_run(run)),
        "bundle": _text(bundle),
        "device": device,
        "budget_bytes": options.budget_bytes(budget),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _answer(
    command: Literal["predict", "evaluate", "deploy"],
    told: dict[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The command's result and the evidence of its budget, as plain values."""
    from edgeladder.core.inference import InferenceRequest
    from edgeladder.core.records import to_json
    from edgeladder.jobs.inference import run_inference

    result, memory = run_inference(
        InferenceRequest(command=command, **told),
        progress,
        progress.evidence if progress is not None else None,
    )
    return {**to_json(result), "memory": to_json(memory)}


def _evaluated(values: dict[str, Any]) -> str:
    rows = [
        [name, item["count"], item["accuracy"], interval_text(item["accuracy"], item["count"])]
        for name, item in values["per_class"].items()
    ]
    count, calibration = values["count"], values["calibration"]
    lines = [
        table(["class", "pictures", "accuracy", "95 % interval"], rows),
        f"accuracy {with_interval(values['accuracy'], count)}; "
        f"zero-shot {with_interval(values['zero_shot_accuracy'], count)}; 95 % intervals",
    ]
    if calibration is not None:
        error = 100 * calibration["expected_error"]
        lines.append(f"probabilities are off by {error:.1f} % on the mean (calibration error)")
    return "\n".join([*lines, *_notice(values)])


def _predicted(values: dict[str, Any]) -> str:
    lines = []
    for item in values["predictions"]:
        labels = ", ".join(f"{x['label']} {100 * x['probability']:.1f} %" for x in item["labels"])
        doubt = f" unknown (known {item['known']:.2f});" if item["unknown"] else ""
        lines.append(f"{item['path']}:{doubt} {labels or item['error']}")
    return "\n".join([*lines, *_notice(values)])


def _deployed(values: dict[str, Any]) -> str:
    what = "logits" if values["class_embeddings"] is None else "embeddings"
    line = (
        f"{values['path']}: {format_size(values['bytes'])}, {values['dtype']}, "
        f"{len(values['classes'])} classes; "
        f"{what} differ from predict's by {values['difference']:.1e} at most "
        f"({values['compared']['pictures']} pictures, {values['compared']['origin']})"
    )
    if values["resize_difference"] is not None:
        line += f"; its resizing by {values['resize_difference']:.0f} grey levels"
    return "\n".join([line, *_notice(values)])


def _notice(values: dict[str, Any]) -> list[str]:
    """What a person must know of an answer among names that training never saw."""
    asked = values["asked"]
    if asked is None or not asked["new"]:
        return []
    some = ", ".join(asked["new"][:3]) + (", .." if len(asked["new"]) > 3 else "")
    part = "orders the others among themselves" if asked["head"] == "own" else "says nothing here"
    return [
        f"{len(asked['new'])} of {asked['count']} names were never trained ({some}): the ladder "
        f"decides; a closed-form head {part}"
    ]
