"""Whether a cache will fit its disk: asked before any work starts, not when the disk is full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core.errors import StorageError
from edgeladder.core.plan import DiskSpace, PhasePlan
from edgeladder.core.request import TrainRequest
from edgeladder.core.sizes import format_size
from edgeladder.runtime.cache.layout import Layout

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle, Side


def cache_space(
    request: TrainRequest, bundle: Bundle, samples: int, classes: int, phase: PhasePlan
) -> DiskSpace:
    """What a request's cache will take, and what is free where it lies.

    Args:
        samples: training pictures in all their views, and test pictures.
        phase: the plan of precompute, for what lies on the disk while it runs.
    """
    folder = Path(request.cache)
    arithmetic = request.chosen.arithmetic if request.chosen else ""
    image, cached = _store(bundle, folder, "image", request, samples, arithmetic)
    text, encoded = _store(bundle, folder, "text", request, classes, "")
    place = _nearest(folder)
    status = os.statvfs(place)
    return DiskSpace(
        folder=str(place),
        cache_bytes=image + text,
        present_bytes=min(image, cached) + min(text, encoded),
        work_bytes=phase.disk_bytes or 0,
        free_bytes=status.f_bavail * status.f_frsize,
    )


def _store(
    bundle: Bundle, folder: Path, side: Side, request: TrainRequest, count: int, arithmetic: str
) -> tuple[int, int]:
    """Bytes that a store needs for so many samples, and bytes of its shards now.

    Whose samples those are is not known before the pictures are read; most often they are these.
    """
    layout = Layout(bundle, side, request.cache_dtype, arithmetic)
    place = folder / layout.name
    there = sum(path.stat().st_size for path in place.glob("*.safetensors") if path.stem.isdigit())
    return count * layout.sample_bytes, there


def _nearest(folder: Path) -> Path:
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    return place


def check_space(space: DiskSpace | None) -> None:
    """Refuse what the disk has no room for.

    Raises:
        StorageError: naming what is missing.
    """
    if space is None or not space.missing_bytes:
        return
    wanted = space.cache_bytes - space.present_bytes
    raise StorageError(
        f"the cache needs {format_size(wanted)} more, and {format_size(space.work_bytes)} while it "
        f"is filled; {format_size(space.free_bytes)} are free",
        where=space.folder,
        remedy=f"free {format_size(space.missing_bytes)} (`edgeladder cache prune`, `edgeladder "
        "runs remove`), name another disk with --cache, or take --dtype int8 or fewer --shots",
    )
