"""The plan worker: validate everything, decide everything, then end.

Pydantic, YAML and the data set's listing live in this process only; the workers after it get
plain values.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from edgeladder import __version__
from edgeladder.budget import kernel_marks, meter, policy
from edgeladder.budget.planner import check, only, plan
from edgeladder.budget.workload import Asked, Workload
from edgeladder.core.bundle import Bundle
from edgeladder.core.config import DeviceProfile, Profile
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import write_json, write_text
from edgeladder.core.plan import MachineBaseline, Plan
from edgeladder.core.prompt_kinds import KINDS
from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.yaml_config import load_device, load_profile, override, read_yaml
from edgeladder.jobs.machine_baseline import machine_baseline
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.runtime import engine as engines
from edgeladder.runtime.adapter import load_adapter
from edgeladder.runtime.pictures.dataset import Dataset, open_data, split

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control


def prepare(values: dict[str, Any], control: Control) -> tuple[str, dict[str, Any]]:
    """Resolve a request into what the workers need; writes config, plan and environment.

    Args:
        values: `request`, and `only_plan` or `only_precompute`.

    Raises:
        ConfigError, DataError, IntegrityError: whatever is wrong with the request.
        BudgetError: nothing fits (not where `only_plan`).
    """
    request = TrainRequest.from_dict(values["request"])
    only_plan = bool(values.get("only_plan"))
    run = RunDirectory(request.run) if request.run else None
    resumed = None
    if request.resume and run is not None:
        request, resumed = _resume(request, run)
    elif request.condense:
        request = _condensing(request, RunDirectory(request.condense))
    bundle = Bundle.open(request.bundle, verify=request.verify)
    if resumed is not None and resumed["bundle_digest"] != bundle.digest:
        raise IntegrityError(
            "the bundle is not the one this run began with",
            where=str(bundle.folder),
            remedy="name the run's bundle, or start a new run",
        )
    profile = _profile(request, bundle)
    device = load_device(request.device) if request.device else None
    request = replace(
        request,
        bundle=str(bundle.folder),
        budget_bytes=request.budget_bytes
        or policy.default_budget(
            device.default_budget_bytes if device else None,
            meter.available_bytes() or meter.total_bytes(),
        ),
        threads=request.threads or _threads(device),
        views=profile.train.views if request.views is None else request.views,
        seed=profile.train.seed if request.seed is None else request.seed,
    )
    assert request.seed is not None
    dataset = open_data(request.data)
    train, test = split(dataset, request.shots, request.seed)
    decided, engine = _decide(request, bundle, profile, dataset, len(train))
    if values.get("only_precompute"):
        decided = only(decided, "precompute")
    if not only_plan:
        check(decided)
    batch = min(profile.train.batch, len(train))
    steps_per_epoch = math.ceil(len(train) / batch)
    steps = profile.train.steps or profile.train.epochs * steps_per_epoch
    if request.condense or profile.head.alone:
        steps = 0
    condense = _condense(request, profile, steps, steps_per_epoch)
    prepared = {
        "request": request.to_dict(),
        "budget_bytes": request.budget_bytes,
        "seed": request.seed,
        "threads": request.threads,
        "engine": engine,
        "bundle_digest": bundle.digest,
        "steps": condense["until"] if condense else steps,
        "condense": condense,
        # ProLIP's lambda is 1 / shots: here the pictures per class on average
        "proximal": profile.loss.proximal * len(dataset.classes) / len(train),
        "folds": profile.head.folds,
        "batch": batch,
        "warmup_steps": math.ceil(profile.train.warmup_epochs * steps_per_epoch),
        "profile": to_json(profile),
        "plan": decided.to_json(),
        "counts": {"train": len(train), "test": len(test), "classes": len(dataset.classes)},
    }
    if run is not None and not only_plan:
        _write_run(run, prepared, device, dataset)
    return "done", prepared


def _resume(request: TrainRequest, run: RunDirectory) -> tuple[TrainRequest, dict[str, Any]]:
    """The run's own request; what concerns this machine now may be given anew."""
    config = read_yaml(run.config)
    saved = TrainRequest.from_dict(config["request"])
    return (
        replace(
            saved,
            run=request.run,
            resume=True,
            budget_bytes=request.budget_bytes or saved.budget_bytes,
            threads=request.threads or saved.threads,
            limit=request.limit,
            restarts=request.restarts,
            supervisor_bytes=request.supervisor_bytes,
        ),
        config,
    )


def _condensing(request: TrainRequest, run: RunDirectory) -> TrainRequest:
    """The finished run's own request, to begin from its adapter in another folder.

    Raises:
        ConfigError: no finished run there.
    """
    if not run.started():
        raise ConfigError(
            "no run to condense here",
            where=str(run.folder),
            remedy="name the folder of a finished run with --run",
        )
    load_adapter(run.folder)  # a run without one is an interrupted one, which the error says
    saved = TrainRequest.from_dict(read_yaml(run.config)["request"])
    return replace(
        saved,
        run=request.run,
        start=str(run.folder),
        condense=request.condense,
        overrides=[*saved.overrides, *request.overrides],
        budget_bytes=request.budget_bytes or saved.budget_bytes,
        device=request.device or saved.device,
        threads=request.threads or saved.threads,
        limit=request.limit,
        restarts=request.restarts,
        baseline=request.baseline,
        supervisor_bytes=request.supervisor_bytes,
        resume=False,
    )


def _condense(
    request: TrainRequest, profile: Profile, steps: int, steps_per_epoch: int
) -> dict[str, Any] | None:
    """When prompts are condensed and until when the rest is tuned; None where nothing is."""
    share = profile.ladder.prompts.keep
    if share is None or (share >= 1 and not request.condense) or profile.head.alone:
        return None
    until = steps + profile.condense.epochs * steps_per_epoch
    return {"at": steps, "until": until, "keep": share, "train": profile.condense.train}


def _profile(request: TrainRequest, bundle: Bundle) -> Profile:
    exported = bundle.manifest.profile
    profile = load_profile(request.profile) if request.profile else exported
    profile = override(profile, request.overrides)
    wanted, given = to_json(profile.ladder), to_json(exported.ladder)
    exported_prompts = exported.ladder.prompts
    if profile.ladder.prompts.keep is not None and exported_prompts.keep is None:
        raise ConfigError(
            "this bundle's prompts cannot be condensed: its ladder has no masks"
            if KINDS[exported_prompts.kind].condense
            else "this bundle's ladder has no prompts to condense",
            where=f"bundle {bundle.folder} (profile {exported.name!r})",
            remedy="export it with masks: `edgeladder export --profile condensation`, or any "
            "profile with --set ladder.prompts.keep=1, and train on that",
        )
    for values in (wanted, given):
        # what the device does: how much to keep, given masks, and what the prompts begin as
        values["prompts"] |= {"initialize": None, "keep": values["prompts"]["keep"] is not None}
    differing = [f"ladder.{key}" for key in given if wanted[key] != given[key]]
    if differing:
        name = request.profile or exported.name
        raise ConfigError(
            f"{', '.join(differing)} of profile {name!r} differ from the exported ladder's",
            where=f"bundle {bundle.folder} (profile {exported.name!r})",
            remedy=f"the ladder is fixed at export: `edgeladder export --profile {name}` "
            "on the host, or leave these keys alone",
        )
    return profile


def _threads(device: DeviceProfile | None) -> int:
    here = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        here = len(os.sched_getaffinity(0))
    return min(device.cores, here) if device is not None else here


def _decide(
    request: TrainRequest, bundle: Bundle, profile: Profile, dataset: Dataset, pictures: int
) -> tuple[Plan, str]:
    """The plan, and the engine it is for: `auto` takes the faster one that fits."""
    baseline = (
        MachineBaseline.from_json(request.baseline) if request.baseline else machine_baseline()
    )
    names = [request.engine]
    if request.engine == "auto":
        available = engines.installed_engines()
        follows = bool(bundle.manifest.ladder.ort_training) and (
            profile.train.optimizer == "adamw" and profile.train.moments != "int8"
        )
        names = ["ort-training"] if follows and "ort-training" in available else []
        names.append("stock")
    assert request.budget_bytes is not None
    decided: Plan | None = None
    kind = profile.head.kind
    for name in names:
        workload = Workload(
            manifest=bundle.manifest,
            classes=len(dataset.classes),
            pictures=len(dataset.pictures),
            batch=min(profile.train.batch, pictures),
            moments=profile.train.moments,
            engine=name,
            # fine-tuning what was condensed holds a copy of the rest
            average=profile.train.average > 0 or (profile.ladder.prompts.keep or 1) < 1,
            optimizer=profile.train.optimizer,
            head=kind,
            head_pictures=policy.wanted_head_pictures(kind, pictures, len(dataset.classes)),
            files={key: record.size for key, record in bundle.manifest.files.items()},
        )
        decided = plan(
            workload,
            baseline,
            request.budget_bytes,
            supervisor_bytes=request.supervisor_bytes,
            asked=Asked(mode=request.mode, chunk=request.chunk),
            planning_bytes=request.supervisor_bytes
            + max(
                kernel_marks.high_water(os.getpid()),
                policy.BASELINE_WORKER_BYTES + baseline.worker_bytes,
            ),
        )
        if decided.fits:
            return decided, name
    assert decided is not None
    return decided, names[-1]


def _write_run(
    run: RunDirectory, prepared: dict[str, Any], device: DeviceProfile | None, dataset: Dataset
) -> None:
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    config = {
        "request": prepared["request"],
        "profile": prepared["profile"],
        "device": to_json(device) if device is not None else None,
        "bundle_digest": prepared["bundle_digest"],
        "engine": prepared["engine"],
        "seed": prepared["seed"],
        "steps": prepared["steps"],
        "batch": prepared["batch"],
        "classes": dataset.classes,
        "class_names": dataset.class_names,
    }
    # plain YAML: what was resolved is what a person reads and what --resume continues
    write_text(run.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    write_json(run.plan, prepared["plan"])
    write_json(run.environment, _environment(prepared))


def _environment(prepared: dict[str, Any]) -> dict[str, Any]:
    versions = {}
    for name in ("numpy", "onnxruntime", "onnxruntime-training-cpu", "pydantic", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "edgeladder": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_total_bytes": meter.total_bytes(),
        "memory_available_bytes": meter.available_bytes(),
        "versions": versions,
        "bundle": str(Path(prepared["request"]["bundle"]).resolve()),
        "bundle_digest": prepared["bundle_digest"],
        "engine": prepared["engine"],
        "threads": prepared["threads"],
        "baseline": prepared["plan"]["baseline"],
    }
