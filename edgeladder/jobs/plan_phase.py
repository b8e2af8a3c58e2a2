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
from typing import TYPE_CHECKING

from edgeladder import __version__
from edgeladder.budget import kernel_marks, meter, policy
from edgeladder.budget.planner import check, only, plan
from edgeladder.budget.workload import Asked
from edgeladder.core import disk
from edgeladder.core.bundle import Bundle
from edgeladder.core.config import MOST_VIEWS, DeviceProfile, Profile
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import write_json
from edgeladder.core.job import Condensation, Counts, Job, PlanOrder
from edgeladder.core.made_here import device_secret
from edgeladder.core.orders import Outcome
from edgeladder.core.plan import Plan
from edgeladder.core.profile_fit import fitted, require_fit
from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.run_config import Environment, RunConfig, read_config, write_config
from edgeladder.core.trusted_keys import pinned_keys
from edgeladder.core.yaml_config import load_device, load_profile, override, says_ladder
from edgeladder.jobs.cache_space import cache_space, check_space
from edgeladder.jobs.machine_baseline import machine_baseline
from edgeladder.jobs.precompute_phase import already_filled
from edgeladder.jobs.previous_run import with_previous
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.jobs.training_workload import may_teach, training_workload, untaught
from edgeladder.runtime import engine as engines
from edgeladder.runtime.adapter import load_adapter
from edgeladder.runtime.pictures.dataset import Dataset, open_data, split
from edgeladder.runtime.pictures.unlabelled import with_unlabelled

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control


def prepare(order: PlanOrder, control: Control) -> tuple[Outcome, Job]:
    """Resolve a request into what the workers need; writes config, plan and environment.

    Args:
        order: the request, and for which command.

    Raises:
        ConfigError, DataError, IntegrityError: whatever is wrong with the request.
        BudgetError: nothing fits (not for `plan`).
    """
    request = order.request
    run = RunDirectory(request.run) if request.run else None
    resumed = None
    if request.resume and run is not None:
        request, resumed = _resume(request, run)
    elif request.condense:
        request = _condensing(request, RunDirectory(request.condense))
    bundle = Bundle.open(request.bundle, verify=request.verify)
    if resumed is not None and resumed.bundle_digest != bundle.digest:
        raise IntegrityError(
            "the bundle is not the one this run began with",
            where=str(bundle.folder),
            remedy="name the run's bundle, or start a new run",
        )
    profile = _profile(request, bundle)
    device = load_device(request.device) if request.device else None
    request = with_previous(_filled(request, bundle, profile, device), bundle, profile)
    dataset = open_data(request.data)
    train, test = split(dataset, request.shots, request.seed or 0)
    found = with_unlabelled(dataset, request.unlabelled, use=profile.unlabelled.use)
    dataset = found if may_teach(found, len(train)) else replace(dataset, unlabelled=[])
    decided, engine = _decide(request, bundle, profile, dataset, len(train))
    samples = len(train) * ((request.views or 0) + 1) + len(test) + decided.unlabelled
    filling = decided.phases["precompute"]
    space = cache_space(request, bundle, samples, len(dataset.classes), filling)
    decided = replace(decided, space=space)
    if order.command == "precompute":
        decided = only(decided, "precompute")
    if order.command != "plan":
        check(decided)
        check_space(space)
    counts = Counts(
        train=len(train),
        test=len(test),
        classes=len(dataset.classes),
        unlabelled=decided.unlabelled,
    )
    job = _job(request, bundle.digest, profile, counts, decided, engine)
    job = replace(job, untaught=untaught(found, len(train), decided))
    if run is not None and order.command != "plan":
        if pinned_keys():
            device_secret(make=True)  # now, and not after the training that it marks
        _write_run(run, job, device, dataset)
    if order.command == "train":
        job = replace(job, filled=already_filled(job, bundle, dataset, control))
    return "done", job


def _filled(
    request: TrainRequest, bundle: Bundle, profile: Profile, device: DeviceProfile | None
) -> TrainRequest:
    """A request with nothing left to be chosen.

    Raises:
        ConfigError: more augmented views than anyone can want.
    """
    views = profile.train.views if request.views is None else request.views
    if not 0 <= views <= MOST_VIEWS:
        raise ConfigError(
            f"{views} augmented views of each picture: 0 to {MOST_VIEWS} are possible",
            where="--views",
            remedy="4 to 16 are worth their time; each is another pass through the tower",
        )
    return replace(
        request,
        bundle=str(bundle.folder),
        budget_bytes=request.budget_bytes
        or policy.default_budget(
            device.default_budget_bytes if device else None,
            meter.available_bytes() or meter.total_bytes(),
        ),
        threads=request.threads or _threads(device),
        views=views,
        seed=profile.train.seed if request.seed is None else request.seed,
    )


def _job(
    request: TrainRequest,
    bundle_digest: str,
    profile: Profile,
    counts: Counts,
    decided: Plan,
    engine: str,
) -> Job:
    assert request.seed is not None and request.budget_bytes and request.threads
    batch = min(profile.train.batch, counts.train)
    steps_per_epoch = math.ceil(counts.train / batch)
    steps = profile.train.steps or profile.train.epochs * steps_per_epoch
    if request.condense or profile.head.alone:
        steps = 0
    condense = _condense(request, profile, steps, steps_per_epoch)
    return Job(
        request=request,
        budget_bytes=decided.budget_bytes,
        seed=request.seed,
        threads=request.threads,
        engine=engine,
        bundle_digest=bundle_digest,
        steps=condense.until if condense else steps,
        condense=condense,
        # ProLIP's lambda is 1 / shots: here the pictures per class on average
        proximal=profile.loss.proximal * counts.classes / counts.train,
        folds=profile.head.folds,
        batch=batch,
        warmup_steps=math.ceil(profile.train.warmup_epochs * steps_per_epoch),
        profile=profile,
        plan=decided,
        counts=counts,
    )


def _resume(request: TrainRequest, run: RunDirectory) -> tuple[TrainRequest, RunConfig]:
    """The run's own request; what concerns this machine now may be given anew."""
    config = read_config(run.config)
    saved = config.request
    engines.require_asked(saved.engine, request.engine, where=str(run.config))
    return (
        replace(
            saved,
            run=request.run,
            resume=True,
            budget_bytes=request.budget_bytes or saved.budget_bytes,
            threads=request.threads or saved.threads,
            limit=request.limit,
            restarts=request.restarts,
            keep_checkpoints=request.keep_checkpoints or saved.keep_checkpoints,
            supervisor_bytes=request.supervisor_bytes,
            surrounding=request.surrounding,
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
    saved = read_config(run.config).request
    return replace(
        saved,
        engine=request.engine if ":" in saved.engine else saved.engine,  # no code of a file's
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
        surrounding=request.surrounding,
        resume=False,
    )


def _condense(
    request: TrainRequest, profile: Profile, steps: int, steps_per_epoch: int
) -> Condensation | None:
    """When prompts are condensed and until when the rest is tuned; None where nothing is."""
    share = profile.ladder.prompts.keep
    if share is None or (share >= 1 and not request.condense) or profile.head.alone:
        return None
    until = steps + profile.condense.epochs * steps_per_epoch
    return Condensation(at=steps, until=until, keep=share, train=profile.condense.train)


def _profile(request: TrainRequest, bundle: Bundle) -> Profile:
    """What is asked for, as this bundle takes it.

    Raises:
        ConfigError: it asks for another ladder than the exported one.
    """
    exported = bundle.manifest.profile
    profile = exported
    if request.profile:
        asked = load_profile(request.profile)
        profile = fitted(asked, exported, any_ladder=not says_ladder(request.profile))
    profile = override(profile, request.overrides)
    where = f"bundle {bundle.folder} (profile {exported.name!r})"
    require_fit(profile, exported, request.profile or exported.name, where=where)
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
    baseline = request.baseline or machine_baseline()
    waiting = request.supervisor_bytes
    if request.bare:  # who asks without being one will not be the one that waits
        waiting = min(waiting, policy.planned_supervisor(baseline.supervisor_bytes))
    engines.require_known(request.engine)
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
    for name in names:
        workload = training_workload(request, bundle, profile, dataset, pictures, name)
        decided = plan(
            workload,
            baseline,
            policy.within(request.budget_bytes, request.surrounding),
            supervisor_bytes=waiting,
            asked=Asked(mode=request.mode, chunk=request.chunk, hold=request.hold),
            planning_bytes=waiting
            + max(
                kernel_marks.high_water(os.getpid()),
                policy.BASELINE_WORKER_BYTES + baseline.worker_bytes,
            ),
        )
        decided = replace(decided, surrounding=request.surrounding)
        if decided.fits:
            return decided, name
    assert decided is not None
    return decided, names[-1]


def _write_run(run: RunDirectory, job: Job, device: DeviceProfile | None, dataset: Dataset) -> None:
    disk.make_folders(run.checkpoints)
    config = RunConfig(
        request=job.request,
        profile=job.profile,
        device=device,
        bundle_digest=job.bundle_digest,
        engine=job.engine,
        seed=job.seed,
        steps=job.steps,
        batch=job.batch,
        classes=dataset.classes,
        class_names=dataset.class_names,
    )
    write_config(run.config, config)
    write_json(run.plan, job.plan.to_json())
    write_json(run.environment, to_json(_environment(job)))


def _environment(job: Job) -> Environment:
    versions = {}
    for name in ("numpy", "onnxruntime", "onnxruntime-training-cpu", "pydantic", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        edgeladder=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        machine=platform.machine(),
        cores=os.cpu_count(),
        memory_total_bytes=meter.total_bytes(),
        memory_available_bytes=meter.available_bytes(),
        versions=versions,
        bundle=str(Path(job.request.bundle).resolve()),
        bundle_digest=job.bundle_digest,
        engine=job.engine,
        threads=job.threads,
        baseline=job.plan.baseline,
    )
