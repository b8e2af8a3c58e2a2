"""`edgeladder evaluate`, `predict`, `deploy`: what a trained run is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer, table
from edgeladder.cli.progress import Progress
from edgeladder.core.sizes import format_size


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (evaluate, predict, deploy):
        app.command()(command)


def evaluate(
    run: options.Run = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Pictures. [default: what the run trained on]")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle. [default: the run's]")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Cached activations. [default: the run's]")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, validation or test. [test if there is one]"),
    ] = None,
    as_json: options.Json = False,
) -> Answer:
    """Accuracy of a run on labelled pictures, by class too."""
    from edgeladder.runtime.evaluation import evaluate as judge

    with Progress() as progress:
        values = judge(
            options.newest_run(run),
            data=data,
            bundle=bundle,
            cache=cache,
            split_name=split,
            progress=progress,
        )
    return Answer(values, lambda: _evaluated(values))


def predict(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    run: options.Run = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle. [default: the run's]")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels per picture.")] = 1,
    as_json: options.Json = False,
) -> Answer:
    """Labels and probabilities for pictures."""
    from edgeladder.runtime.prediction import predict as classify

    values = classify(options.newest_run(run), paths, bundle=bundle, top=top)
    return Answer(values, lambda: _predicted(values))


def deploy(
    run: options.Run = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle. [default: the run's]")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")] = Path("model.onnx"),
    dtype: Annotated[str, typer.Option("--dtype", help="Weights: fp32, fp16, int8.")] = "fp32",
    as_json: options.Json = False,
) -> Answer:
    """One ONNX file of a run: picture in, probabilities out."""
    from edgeladder.runtime.deployment import deploy as write

    values = write(options.newest_run(run), out, bundle=bundle, dtype=dtype)
    return Answer(values, lambda: _deployed(values))


def _evaluated(values: dict[str, Any]) -> str:
    rows = [[name, item["count"], item["accuracy"]] for name, item in values["per_class"].items()]
    return "\n".join(
        [
            table(["class", "pictures", "accuracy"], rows),
            f"accuracy {100 * values['accuracy']:.1f} % on {values['count']} pictures "
            f"(zero-shot {100 * values['zero_shot_accuracy']:.1f} %)",
        ]
    )


def _predicted(values: dict[str, Any]) -> str:
    lines = []
    for item in values["predictions"]:
        labels = ", ".join(f"{x['label']} {100 * x['probability']:.1f} %" for x in item["labels"])
        lines.append(f"{item['path']}: {labels or item['error']}")
    return "\n".join(lines)


def _deployed(values: dict[str, Any]) -> str:
    return (
        f"{values['path']}: {format_size(values['bytes'])}, {values['dtype']}, "
        f"{len(values['classes'])} classes; "
        f"logits differ from predict's by {values['difference']:.1e} at most "
        f"({values['compared']['pictures']} pictures, {values['compared']['origin']})"
    )
