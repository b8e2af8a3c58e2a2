"""Which cached samples somebody may still want: of pictures that are there, and of unfinished runs.

A cache is often shared: by several data sets, by bundles, by all runs below `runs/`. What any of
those uses is wanted, whichever of them the person who prunes was thinking of.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import MOST_VIEWS
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.files import real_path
from edgeladder.runtime.cache.layout import KEY_BYTES, Layout, TapDtype
from edgeladder.runtime.cache.prune import Wanted
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.cache.store import sample_key
from edgeladder.runtime.pictures.dataset import Picture, open_data
from edgeladder.runtime.pictures.reduction import SCALES
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.pictures.unlabelled import list_pictures
from edgeladder.runtime.pictures.views import VERSION
from edgeladder.runtime.run_folder import run_request

_DTYPES: tuple[TapDtype, ...] = get_args(TapDtype)


@dataclass
class _Users:
    """What runs below a folder use of a cache."""

    bundles: list[Path] = field(default_factory=list)
    data: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)  # folders and archives of their own
    selections: list[Selection] = field(default_factory=list)  # of unfinished runs
    arithmetics: set[str] = field(default_factory=set)  # of accelerators


def wanted_samples(
    cache: Path, bundles: Sequence[Path], data: Sequence[Path], runs: Path, views: int = MOST_VIEWS
) -> Wanted:
    """What of a cache shall stay.

    Args:
        cache: its folder.
        bundles: whose stores stay, beside those of the runs' bundles.
        data: whose pictures' samples stay, beside those of the runs' data; where none is there,
            all samples stay.
        runs: folder of runs; of an unfinished one all samples stay, since it may be resumed.
        views: augmented views of a picture that stay.

    Raises:
        ConfigError, IntegrityError: a bundle that was named cannot be opened.
        DataError: data that were named cannot.
    """
    users = _users(cache, runs)
    opened = [Bundle.open(path, verify=False) for path in bundles]
    opened += [found for path in users.bundles if (found := _bundle(path)) is not None]
    layouts = {
        layout.name: layout
        for bundle in opened
        for dtype in _DTYPES
        for layout in _layouts(bundle, dtype, users.arithmetics)
    }
    places = [*data, *(path for path in users.data if path.exists())]
    if not places:
        return Wanted(layouts, {}, others=not opened)
    keys = set(_keys(places, views, strict=len(data)))
    for place in dict.fromkeys(users.unlabelled):
        with contextlib.suppress(EdgeLadderError):  # gone, as a run's other data may be
            keys |= set(_samples(list_pictures([place]), 0))
    for selection in users.selections:
        trained = selection.train_keys.reshape(-1, KEY_BYTES)
        for stored in (trained, selection.test_keys, selection.unlabelled_keys):
            keys |= {row.tobytes() for row in stored}
    held = frozenset(keys)
    images = {name: held for name, layout in layouts.items() if layout.side == "image"}
    return Wanted(layouts, images, others=not opened)


def _layouts(bundle: Bundle, dtype: TapDtype, arithmetics: Iterable[str]) -> Iterator[Layout]:
    yield Layout(bundle, "text", dtype)
    for arithmetic in ("", *arithmetics):
        yield Layout(bundle, "image", dtype, arithmetic)


def _users(cache: Path, runs: Path) -> _Users:
    found = _Users()
    for config in sorted(runs.glob("*/config.yaml")):
        run = config.parent
        try:
            request = run_request(run)
            named = {key: Path(str(request[key])) for key in ("cache", "bundle", "data")}
        except (EdgeLadderError, KeyError):  # not a run of ours, or a damaged one
            continue
        if real_path(named["cache"]) != real_path(cache):
            continue
        found.bundles.append(named["bundle"])
        found.data.append(named["data"])
        if request.get("unlabelled"):
            found.unlabelled.append(Path(str(request["unlabelled"])))
        try:
            selection = Selection.load(run / "selection.safetensors")
        except EdgeLadderError:  # it was stopped before it had one
            continue
        if selection.arithmetic:
            found.arithmetics.add(selection.arithmetic)
        if not (run / "adapter.json").is_file():
            found.selections.append(selection)
    return found


def _bundle(path: Path) -> Bundle | None:
    try:
        return Bundle.open(path, verify=False)
    except EdgeLadderError:  # a run's, which is gone
        return None


def _keys(places: Sequence[Path], views: int, strict: int) -> Iterator[bytes]:
    """Keys of every picture's samples; data beyond the first `strict` may be damaged."""
    for number, place in enumerate(dict.fromkeys(map(real_path, places))):
        try:
            dataset = open_data(place)
        except EdgeLadderError:
            if number < strict:
                raise
            continue
        yield from _samples(dataset.pictures, views)
        yield from _samples(dataset.unlabelled, 0)


def _samples(pictures: Iterable[Picture], views: int) -> Iterator[bytes]:
    """Keys of pictures' samples, in every way they may have been decoded."""
    for picture in pictures:
        try:
            digest = hashlib.sha256(picture.read()).digest()
        except UnreadableError:
            continue
        for view in range(views + 1):
            for scale in SCALES:
                yield sample_key(digest, view, VERSION, scale=scale)
