"""The provider worker: what an execution provider's trial showed on this machine, or the trial.

Trials are remembered, as the memory baseline is: by bundle, provider, onnxruntime and threads. One
worker tries one provider, so that what it measures of itself is that provider's.
"""

from __future__ import annotations

import contextlib
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeladder.budget import kernel_marks
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import IntegrityError, StorageError
from edgeladder.core.files import read_json, write_json
from edgeladder.core.orders import Outcome, ProviderOrder
from edgeladder.core.provider import PROVIDERS, Trial, Trials
from edgeladder.core.records import from_json, to_json
from edgeladder.core.user_cache import user_cache
from edgeladder.jobs.machine_baseline import machine_baseline

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control


def tried(order: ProviderOrder, control: Control) -> tuple[Outcome, Trials]:
    """Trials of the order's providers; those that are missing are not known, or not in time."""
    bundle = _bundle(order)
    threads = order.threads or len(os.sched_getaffinity(0))
    key = f"{bundle.tower_key('image')[:16]} {_versions()} {threads}"
    if not order.try_now:
        return "done", Trials(key=key, known=remembered(key, order.providers))
    bundle.check()  # every byte, before a library that compiles it sees it
    from edgeladder.runtime.provider_trial import try_provider

    before = kernel_marks.gpu_bytes() or 0
    room = order.budget_bytes - machine_baseline().worker_bytes
    trial = try_provider(
        bundle,
        order.providers[0],
        threads=threads,
        memory_bytes=max(0, room),
        mark=lambda: (
            kernel_marks.high_water(os.getpid()),
            max(0, (kernel_marks.gpu_bytes() or 0) - before),
        ),
    )
    remember(key, trial)
    return "done", Trials(key=key, known=[trial])


def _bundle(order: ProviderOrder) -> Bundle:
    if order.bundle is not None:
        return Bundle.open(order.bundle, verify=False)
    from edgeladder.runtime.run_folder import run_bundle

    return Bundle.open(run_bundle(Path(order.run or ".")), verify=False)


def _versions() -> str:
    """Every distribution here that brings `onnxruntime`, with its version."""
    found = []
    names = {"onnxruntime", *(item.wheel for item in PROVIDERS.values())}
    for name in sorted(names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name}=={metadata.version(name)}")
    return " ".join(found)


def _path() -> Path:
    return user_cache() / "providers.json"


def _all() -> dict[str, Any]:
    try:
        known = read_json(_path())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remembered(key: str, providers: tuple[str, ...]) -> list[Trial]:
    """What is known of these providers; what another version wrote is not."""
    known = _all().get(key)
    if not isinstance(known, dict):
        return []
    found = []
    for name in providers:
        with contextlib.suppress(IntegrityError, KeyError, TypeError):
            found.append(from_json(Trial, known[name], where=str(_path())))
    return found


def remember(key: str, trial: Trial) -> None:
    """Keep a trial; a folder that cannot be written to has it tried again."""
    known = _all()
    of_this = known.get(key)
    known[key] = {**(of_this if isinstance(of_this, dict) else {}), trial.provider: to_json(trial)}
    with contextlib.suppress(OSError, StorageError):
        write_json(_path(), known)
