"""`edgeladder models`: what `export --model` takes, with size and licence."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer, table
from edgeladder.core.sizes import format_size

if TYPE_CHECKING:
    from edgeladder.host.model.catalogue import Listed


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(models)


def models(
    search: Annotated[
        str | None, typer.Argument(help="Part of a name, of a tag or of a licence.")
    ] = None,
    as_json: options.Json = False,
) -> Answer:
    """Host: models that can be exported, with size and licence; what is refused and why.

    Example: edgeladder models siglip
    """
    from edgeladder.host.model.catalogue import models as listed

    wanted = (search or "").lower()
    found = [
        item
        for item in listed()
        if wanted in f"{item.name} {item.pretrained} {item.licence}".lower()
    ]
    values = {"models": [dataclasses.asdict(item) for item in found]}
    return Answer(values, lambda: _said(found))


def _said(found: list[Listed]) -> str:
    works = [
        [
            item.name,
            item.pretrained,
            item.image_millions,
            item.text_millions,
            format_size(item.bytes) if item.bytes else "-",
            item.pixels,
            item.licence,
        ]
        for item in found
        if item.works
    ]
    header = ["model", "weights", "image M", "text M", "fp32", "pixels", "licence"]
    refused = [[item.name, item.reason, item.instead] for item in found if not item.works]
    parts = [table(header, works)] if works else []
    if refused:
        parts.append("refused:\n" + table(["model", "why", "take"], refused))
    parts.append(
        "M: millions of parameters. Licences as the model cards name them: read the card before "
        "you ship."
        if found
        else "no model is called so; `edgeladder models` lists all"
    )
    return "\n\n".join(parts)
