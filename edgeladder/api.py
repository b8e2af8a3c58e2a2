"""The commands as functions: `import edgeladder`, then `edgeladder.train(...)`.

What works is done by a supervisor in a process of its own, exactly as from the command line: the
budget bounds that process and all that it starts, whatever this one holds. Errors are those of
`edgeladder.core.errors`, with a message, where, and a remedy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from edgeladder.core.errors import ConfigError
from edgeladder.core.job import PrecomputeResult
from edgeladder.core.plan import Plan
from edgeladder.core.records import from_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.run_list import pinned_run
from edgeladder.core.shipped import NANO_BUNDLE, named_bundle
from edgeladder.jobs.call import Progress
from edgeladder.run import PathText, Run, Settings, Size, size_bytes, supervised

CacheDtype = Literal["fp16", "int8"]


def export(
    model: str,
    pretrained: str | None = None,
    *,
    profile: str = "default",
    settings: Settings = (),
    classes: Iterable[str] = (),
    engine: str = "auto",
    dtype: str = "fp32",
    calibration: PathText | None = None,
    tokenizer: PathText | None = None,
    out: PathText = "bundle",
    progress: bool | Progress = True,
) -> Path:
    """On a host (`pip install 'edgeladder[host]'`): turn an open_clip model into a bundle.

    Args:
        model: `ViT-B/16`, `MobileCLIP-S1`, `hf-hub:ORG/REPO`, ...
        pretrained: weights: a tag, a file, or `none`; None: the usual tag.
        profile: recipe, by name or YAML file.
        settings: single keys of it: `{"ladder.width": 64}`.
        classes: class names, where a profile wants them at export.
        engine: training graphs: auto, stock, ort-training, all.
        dtype: of the towers: fp32, int8 (arithmetic), int8-weights or fp16 (stored small).
        calibration: labelled pictures, for `dtype` int8 or `ladder.initialize` of `fisher` or
            `directions`.
        tokenizer: folder of the model's tokenizer, downloaded elsewhere.
        out: folder, or a path that ends in .tar.
        progress: show it; or a function that is told what is being done.

    Returns:
        The bundle's path.

    Raises:
        ConfigError: as `edgeladder export`.
        ModuleNotFoundError: torch or open_clip is not installed.
    """
    from edgeladder.core.progress import Progress as Lines
    from edgeladder.core.yaml_config import load_profile
    from edgeladder.host.export import ExportOptions
    from edgeladder.host.export import export as run_export

    options = ExportOptions(list(classes), engine, dtype, _path(calibration), _path(tokenizer))
    recipe = load_profile(profile, overrides(settings))
    with Lines() as lines:
        told = progress if callable(progress) else lines if progress else _nobody
        run_export(model, pretrained, recipe, options, out=Path(out), progress=told)
    return Path(out)


def plan(
    data: PathText = "data",
    *,
    bundle: PathText | None = None,
    cache: PathText = "cache",
    unlabelled: PathText | None = None,
    budget: Size | None = None,
    device: str | None = None,
    profile: str | None = None,
    settings: Settings = (),
    shots: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
) -> Plan:
    """Predict peak memory and the smallest budget that fits; arguments as `train`'s.

    Returns:
        `fits`, `minimum_budget_bytes`, and the `phases` with their peaks and sizes. It is an
        answer, not an error, where the budget is too small.
    """
    request = _request(
        data, bundle, cache, budget, unlabelled=_text(unlabelled), device=device,
        profile=profile, overrides=overrides(settings), shots=shots, engine=engine, threads=workers,
    )  # fmt: skip
    return Plan.from_json(supervised("plan", request, False))


def precompute(
    data: PathText = "data",
    *,
    bundle: PathText | None = None,
    cache: PathText = "cache",
    unlabelled: PathText | None = None,
    budget: Size | None = None,
    device: str | None = None,
    views: int | None = None,
    dtype: CacheDtype = "fp16",
    workers: int | None = None,
    progress: bool | Progress = True,
) -> PrecomputeResult:
    """Run the frozen towers over pictures, once for each; `train` does it where it is missing.

    Args:
        views: augmented views of each picture; None: the profile's.
        dtype: of the cache.
    """
    request = _request(
        data, bundle, cache, budget, unlabelled=_text(unlabelled), device=device, views=views,
        cache_dtype=dtype, threads=workers,
    )  # fmt: skip
    values = supervised("precompute", request, progress)
    values.pop("memory")
    return from_json(PrecomputeResult, values, where="the precompute worker")


def train(
    data: PathText = "data",
    *,
    bundle: PathText | None = None,
    cache: PathText = "cache",
    unlabelled: PathText | None = None,
    run: PathText | None = None,
    budget: Size | None = None,
    device: str | None = None,
    profile: str | None = None,
    settings: Settings = (),
    shots: int | None = None,
    engine: str = "auto",
    seed: int | None = None,
    start: PathText | None = None,
    dtype: CacheDtype = "fp16",
    workers: int | None = None,
    progress: bool | Progress = True,
) -> Run:
    """Plan, precompute what is missing, train the ladder, evaluate, report.

    Args:
        data: pictures: a folder of `class/picture`, a .zip of it, or a CSV or JSONL of path and
            label.
        bundle: a folder or .tar, or `nano`, which ships; None: `./bundle`, else `nano`.
        cache: folder of cached activations.
        unlabelled: folder or .zip of pictures without a label that teach as well; None:
            `unlabelled/` in the data, where it is there.
        run: directory to make; None: a new one below `runs/`.
        budget: memory of all processes, `"192MB"` or bytes; None: the device's default.
        device: device profile, by name or YAML file; None: this machine.
        profile: recipe, by name or YAML file; None: the bundle's.
        settings: single keys of it: `{"train.epochs": 20}` or `["train.epochs=20"]`.
        shots: pictures of each class; None: all.
        engine: auto, stock or ort-training.
        seed: None: the profile's.
        start: run whose adapter to begin from.
        dtype: of the cache.
        workers: threads of computation; None: the device's cores.
        progress: show it, in a notebook or on stderr; or a function that is told (phase, done,
            total, note, used_bytes, budget_bytes).

    Returns:
        The run, its `report.html` written.

    Raises:
        ConfigError, DataError, IntegrityError: before anything heavy starts.
        BudgetError: it does not fit; `minimum_budget_bytes` would.
        Interrupted: Ctrl-C; `resume` goes on.
    """
    request = _request(
        data, bundle, cache, budget, unlabelled=_text(unlabelled), run=_text(run), device=device,
        profile=profile, overrides=overrides(settings), shots=shots, engine=engine, seed=seed,
        start=_text(start), cache_dtype=dtype, threads=workers,
    )  # fmt: skip
    return _trained(request, progress)


def resume(
    run: PathText,
    *,
    budget: Size | None = None,
    workers: int | None = None,
    progress: bool | Progress = True,
) -> Run:
    """Go on with a run that was stopped, bit for bit; `budget` and `workers` may be others."""
    request = TrainRequest(
        run=os.fspath(run), resume=True, budget_bytes=size_bytes(budget), threads=workers
    )
    return _trained(request, progress)


def load(run: PathText | None = None) -> Run:
    """A run by its directory; None: the one below `runs/` that is pinned, else the newest.

    Raises:
        ConfigError: there is none.
    """
    if run is not None:
        return Run(run)
    folder = Path("runs")
    found = pinned_run(folder) if (folder / "pinned.json").is_file() else None
    if found is None:
        finished = [path.parent for path in folder.glob("*/adapter.json")]
        if not finished:
            raise ConfigError(f"no run below {folder}", remedy="edgeladder.train(...) makes one")
        found = max(finished, key=lambda path: path.stat().st_mtime)
    return Run(found)


def overrides(settings: Settings) -> list[str]:
    """`a.b=c` of each setting."""
    if isinstance(settings, Mapping):
        return [f"{key}={value}" for key, value in settings.items()]
    return list(settings)


def _trained(request: TrainRequest, progress: bool | Progress) -> Run:
    made = Run(supervised("train", request, progress)["run"])
    made.report()
    return made


def _request(
    data: PathText,
    bundle: PathText | None,
    cache: PathText,
    budget: Size | None,
    **more: Any,
) -> TrainRequest:
    """A request of only what was given, so that each default stays in one place."""
    found = _bundle(bundle)
    for noun, path in (("bundle", found), ("pictures", Path(data))):
        if not path.exists():
            raise ConfigError(
                f"no {noun} at {path}",
                where=f"the current folder is {Path.cwd()}",
                remedy='bundle="nano" is the model that ships'
                if noun == "bundle"
                else f"put them in {path}/<class>/<picture>.jpg",
            )
    given = {name: value for name, value in more.items() if value is not None}
    return TrainRequest(
        bundle=str(found),
        data=os.fspath(data),
        cache=os.fspath(cache),
        budget_bytes=size_bytes(budget),
        **given,
    )


def _bundle(bundle: PathText | None) -> Path:
    """The bundle named; `./bundle`, else nano, where none was."""
    if bundle is not None:
        return named_bundle(os.fspath(bundle))
    return Path("bundle") if Path("bundle").exists() else NANO_BUNDLE


def _path(path: PathText | None) -> Path | None:
    return None if path is None else Path(path)


def _text(path: PathText | None) -> str | None:
    return None if path is None else os.fspath(path)


def _nobody(note: str) -> None:
    return
