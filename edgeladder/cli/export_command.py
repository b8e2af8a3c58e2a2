"""`edgeladder export`: on a host, a model becomes a bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer
from edgeladder.cli.progress import Progress

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(export)


def export(
    model: Annotated[
        str, typer.Option("--model", help="ViT-B/16, openai/clip-vit-base-patch16, hf-hub:...")
    ],
    pretrained: Annotated[
        str | None,
        typer.Option("--pretrained", help="Weights: a tag, a FILE, or none. [the usual tag]"),
    ] = None,
    profile: Annotated[str, typer.Option("--profile", help="Recipe: name or YAML.")] = "default",
    settings: options.Settings = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Comma-separated names, or a file of them.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="Training graphs: auto, stock, ort-training, all.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Towers: fp32, int8, int8-weights, fp16.")
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Labelled pictures for --dtype int8 or ladder.initialize: fisher, directions.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Folder of the model's tokenizer, downloaded elsewhere."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder or .tar to write.")] = options.BUNDLE,
    as_json: options.Json = False,
) -> Answer:
    """Host: turn an open_clip model into a bundle for devices."""
    from edgeladder.core.yaml_config import load_profile
    from edgeladder.host.export import ExportOptions
    from edgeladder.host.export import export as run_export

    recipe = load_profile(profile, settings or ())
    with Progress() as progress:
        bundle = run_export(
            model,
            pretrained,
            recipe,
            ExportOptions(class_names(classes), engine, dtype, calibration, tokenizer),
            out=out,
            progress=progress,
        )
    values = describe(bundle)
    return Answer(values, "\n".join(f"{key}: {value}" for key, value in values.items()))


def class_names(text: str | None) -> list[str]:
    """Class names from `a,b,c`, or from a file with one a line.

    Raises:
        ConfigError: a name is there twice, or the file is no UTF-8 text.
    """
    from edgeladder.core.errors import ConfigError
    from edgeladder.core.plain_files import configured_lines

    if not text:
        return []
    words, path = text.split(","), Path(text)
    if path.is_file():
        remedy = "name a UTF-8 text file with one a line"
        words = configured_lines(path, "the class names", where="--classes", remedy=remedy)
    names = [word.strip() for word in words if word.strip()]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"class {name!r} is there twice", where="--classes")
    return names


def describe(bundle: Bundle) -> dict[str, Any]:
    """What an export answers: where, what and how big."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "model": manifest.model.name,
        "pretrained": manifest.model.pretrained,
        "profile": manifest.profile.name,
        "engines": ["stock", *(["ort-training"] if manifest.ladder.ort_training else [])],
        "parameters": sum(math.prod(item.shape) for item in manifest.ladder.parameters),
        "bytes": sum(record.size for record in manifest.files.values()),
        "digest": bundle.digest,
    }
