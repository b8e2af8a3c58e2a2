"""What `check` and `suggest` do alike: look through pictures in a job, and answer with JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeladder.cli.progress import Progress
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.records import to_json

if TYPE_CHECKING:
    from edgeladder.core.inference import InferenceRequest
    from edgeladder.core.review import Review
    from edgeladder.core.suggestion import Suggestions


def require_page(page: Path | None) -> None:
    """Refuse a page that would replace what is none of ours.

    Raises:
        ConfigError: another file has that name.
    """
    from edgeladder.core.ownership import require_ours

    if page is not None:
        require_ours(page, "page", option="--page")


def looked_through(request: InferenceRequest) -> tuple[Any, MemoryResult]:
    """What the request's command found, and its memory, with progress shown."""
    from edgeladder.jobs.inference import run_inference

    with Progress() as progress:
        return run_inference(request, progress)


def values_of(
    found: Review | Suggestions, written: dict[str, str], memory: MemoryResult
) -> dict[str, Any]:
    """The JSON of an answer: all but the thumbnails, which the page holds."""
    values = {**to_json(replace(found, thumbnails={})), **written, "memory": to_json(memory)}
    del values["thumbnails"]
    return values
