"""The run that a new one begins from: pictures or classes were added, and `train` came again.

The ladder's parameters belong to the bundle, not to the classes: names pass through the text tower,
so an adapter fits however many classes there are now. It does not fit another bundle, and where the
head counts alone there is no ladder to begin from. Whether it begins from the previous run or not,
the new one is compared with it afterwards.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core.errors import ConfigError, EdgeLadderError, IntegrityError
from edgeladder.core.files import real_path
from edgeladder.core.run_config import read_config
from edgeladder.core.run_list import PINNED, pinned_run
from edgeladder.runtime.adapter import load_adapter

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.config import Profile
    from edgeladder.core.request import TrainRequest


def with_previous(request: TrainRequest, bundle: Bundle, profile: Profile) -> TrainRequest:
    """The request with the run to begin from and to compare with, in place of where to look.

    Args:
        request: `previous` names a folder of runs, or nothing is done.
        bundle: that the new run is trained on.
        profile: of the new run.

    Returns:
        `previous`: the pinned run, else the newest, that learnt from the same data; None where
        there is none. `start`: the same, where it fits; `start_note`: else why not.
    """
    if request.previous is None or request.resume or request.condense:
        return request
    found = _newest(Path(request.previous), request)
    if found is None:
        return replace(request, previous=None)
    request = replace(request, previous=str(found))
    if request.start is not None:  # an adapter that was named goes before
        return request
    reason = _misfit(found, bundle, profile)
    if reason is not None:
        return replace(request, start_note=f"not begun from {found}: {reason}")
    return replace(request, start=str(found), start_note=f"begun from {found}")


def _newest(folder: Path, request: TrainRequest) -> Path | None:
    """The finished run on the same data: the pinned one, else the newest."""
    runs = [path.parent for path in folder.glob("*/adapter.json")]
    runs.sort(key=lambda run: (run / "adapter.json").stat().st_mtime, reverse=True)
    if (folder / PINNED).is_file():
        try:
            pinned = pinned_run(folder)
        except ConfigError:  # training needs no pin; `predict` will say it
            pinned = None
        runs = [*([pinned] if pinned is not None else []), *runs]
    data = real_path(request.data)
    for run in runs:
        try:
            trained = read_config(run / "config.yaml").request.data
        except EdgeLadderError:  # a bare adapter, or a damaged one: no candidate
            continue
        if real_path(trained) == data and run.name != Path(request.run or "").name:
            return run
    return None


def _misfit(run: Path, bundle: Bundle, profile: Profile) -> str | None:
    """Why an adapter cannot be begun from, in words; None where it can."""
    if profile.head.alone:
        return "the profile's head counts alone, without a ladder"
    try:
        adapter = load_adapter(run)
    except (ConfigError, IntegrityError) as error:
        return f"its adapter cannot be read ({error.message})"
    if adapter.record.bundle_digest != bundle.digest:
        return f"it was trained on another bundle (model {adapter.record.model})"
    return None
