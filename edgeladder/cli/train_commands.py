"""`edgeladder precompute`, `plan`, `train`: what needs the memory budget.

This process stays small: it holds the request and waits, while workers of the supervisor do the
work, and its memory counts inside the budget.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from edgeladder.budget.policy import wants_bare_supervisor
from edgeladder.cli import options, verbosity
from edgeladder.cli.gathered import gathered
from edgeladder.cli.output import Answer, table
from edgeladder.cli.previous import beside_previous, told
from edgeladder.cli.progress import Progress
from edgeladder.core.config import MOST_VIEWS
from edgeladder.core.errors import BudgetError, ConfigError, StorageError
from edgeladder.core.intervals import with_interval
from edgeladder.core.progress import NORMAL
from edgeladder.core.provider import check_provider
from edgeladder.core.records import to_json
from edgeladder.core.sizes import format_size

if TYPE_CHECKING:  # records of a training cost every command start-up time
    from edgeladder.core.job import Condensed
    from edgeladder.core.plan import DiskSpace, Plan
    from edgeladder.core.request import TrainRequest
    from edgeladder.core.result import RunResult


may_step_aside = False  # set by the console script: only a process of our own may be replaced


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (precompute, plan, train):
        app.command()(command)


@dataclasses.dataclass(frozen=True)
class Place:
    """What all three commands are told: on what, and within what."""

    bundle: Path
    data: Path
    unlabelled: Path | None
    cache: Path
    device: str | None
    budget_bytes: int | None
    provider: str


def _place(
    bundle: options.Bundle = options.BUNDLE,
    data: options.Data = options.DATA,
    unlabelled: options.Unlabelled = None,
    cache: options.Cache = options.CACHE,
    device: options.Device = None,
    budget: options.Budget = None,
    provider: options.Provider = "auto",
) -> Place:
    check_provider(provider)
    return Place(bundle, data, unlabelled, cache, device, options.budget_bytes(budget), provider)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train; what was not given keeps the request's default."""

    profile: str | None
    overrides: list[str] | None
    shots: int | None
    engine: str


def _recipe(
    profile: options.Profile = None,
    settings: options.Settings = None,
    shots: options.Shots = None,
    engine: options.Engine = "auto",
) -> Recipe:
    return Recipe(profile, settings, shots, engine)


@gathered(place=_place)
def precompute(
    place: Place,
    views: Annotated[
        int | None,
        typer.Option("--views", min=0, max=MOST_VIEWS, help="Augmented views per picture."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the cache: fp16 or int8.")] = "fp16",
    as_json: options.Json = False,
) -> Answer:
    """Run the frozen towers over pictures, once for each."""
    from edgeladder.jobs import supervisor

    place = _found(place)
    request = _request(place, views=views, cache_dtype=dtype)
    with Progress() as progress:
        filled, memory = supervisor.precompute(request, progress, progress.evidence)
    return Answer(
        {**to_json(filled), "memory": to_json(memory)},
        lambda: (
            f"{filled.new} pictures computed, {filled.reused} already there "
            f"({filled.provider.name}: {filled.provider.reason})"
            + (f", {len(filled.skipped_inputs)} skipped" if filled.skipped_inputs else "")
        ),
    )


@gathered(place=_place, recipe=_recipe)
def plan(place: Place, recipe: Recipe, as_json: options.Json = False) -> Answer:
    """Predict peak memory and the smallest budget that fits."""
    from edgeladder.jobs import supervisor

    place = _found(place)
    request = _request(place, recipe)
    request = dataclasses.replace(request, bare=_small(request))  # as `train` will run it
    decided = supervisor.plan(request)
    code = 0 if decided.fits else BudgetError.exit_code
    if decided.fits and decided.space is not None and decided.space.missing_bytes:
        code = StorageError.exit_code
    return Answer(decided.to_json(), lambda: _planned(decided), exit_code=code)


@gathered(place=_place, recipe=_recipe)
def train(
    place: Place,
    recipe: Recipe,
    seed: options.Seed = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run directory to make. [runs/<stamp>]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of the cache: fp16 or int8. [fp16]")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="Begin from this adapter. [the last run's on these pictures]"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin from the bundle's own ladder, compare nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this run from its checkpoint.")
    ] = None,
    keep_checkpoints: Annotated[
        bool,
        typer.Option("--keep-checkpoints", help="Keep them when the run is finished, too."),
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="DIR", help="Write TensorBoard's event files too."),
    ] = None,
    no_pictures: options.NoPictures = False,
    as_json: options.Json = False,
) -> Answer:
    """Plan, precompute, train the ladder, evaluate, report.

    Trained again after pictures or classes were added, only these are computed, the last run is
    begun from, and both are compared on the same pictures.
    """
    from edgeladder.jobs import supervisor

    if resume is None:
        place = _found(place)
    else:
        options.require(run=resume)
    request = _request(
        place, recipe, seed=seed, cache_dtype=dtype, start=str(start) if start else None,
        run=str(resume or run) if resume or run else None, resume=resume is not None,
        keep_checkpoints=keep_checkpoints, tensorboard=str(tensorboard) if tensorboard else None,
        previous=None if fresh or resume or start else str(options.RUNS),
    )  # fmt: skip
    if may_step_aside and _small(request):
        raise StepAside(request, pictures=not no_pictures)
    with Progress() as progress:
        result = supervisor.train(request, progress, progress.evidence)
    return finished(result, pictures=not no_pictures)


class StepAside(Exception):  # noqa: N818 - not an error
    """This process is too large for the budget: it leaves the training to a bare supervisor."""

    def __init__(self, request: TrainRequest, *, pictures: bool = True):
        super().__init__()
        self.request = request
        self.pictures = pictures

    def become(self, as_json: bool) -> NoReturn:
        """Be the bare supervisor from here on; `edgeladder.cli.finish` says how it went."""
        from edgeladder.jobs import supervisor

        flags = {"--json": as_json, "--no-pictures": not self.pictures}
        then = ["-m", "edgeladder.cli.finish", *(name for name, on in flags.items() if on)]
        supervisor.become(self.request, as_json=as_json, then=then, level=verbosity.level())


def _small(request: TrainRequest) -> bool:
    """Whether the budget is one in which this process's own 30 MB matter."""
    budget = request.budget_bytes
    if budget is None and request.device:
        from edgeladder.core.yaml_config import load_device

        budget = load_device(request.device).default_budget_bytes
    return wants_bare_supervisor(budget)


def finished(result: RunResult, *, pictures: bool = True) -> Answer:
    """Write the report of a training and answer with its result."""
    from edgeladder.report import write_report  # only now: what it imports counts as well

    report = write_report(Path(result.run), pictures=pictures)
    previous = beside_previous(result)
    values = {**to_json(result), "report": str(report), "previous": previous}
    return Answer(values, lambda: "\n".join([trained(result, report), *told(previous)]))


def _found(place: Place) -> Place:
    """The place with the bundle that is meant; refuses while it or the pictures are missing."""
    bundle = options.shipped_or(place.bundle)
    named = place.unlabelled
    waiting = {} if named is None else {"unlabelled pictures": named}
    options.require(bundle=bundle, pictures=place.data, **waiting)
    nobody_named_it = bundle != place.bundle and place.bundle is options.BUNDLE
    if nobody_named_it and verbosity.level() >= NORMAL:
        typer.echo(
            "no ./bundle here: nano is taken, which ships (--bundle names another)", err=True
        )
    return dataclasses.replace(place, bundle=bundle)


def _request(place: Place, recipe: Recipe | None = None, **more: Any) -> TrainRequest:
    """A request of only what was given, so that each default stays in one place."""
    from edgeladder.core.request import TrainRequest

    if more.get("cache_dtype") not in (None, "fp16", "int8"):
        raise ConfigError(
            f"unknown --dtype {more['cache_dtype']!r} of the cache", remedy="use fp16 or int8"
        )
    if recipe is not None:
        more |= to_json(recipe)
    return TrainRequest(
        bundle=str(place.bundle),
        data=str(place.data),
        cache=str(place.cache),
        **options.optional(
            unlabelled=str(place.unlabelled) if place.unlabelled else None,
            device=place.device,
            budget_bytes=place.budget_bytes,
            provider=place.provider,
            **more,
        ),
    )


def _planned(decided: Plan) -> str:
    rows = [
        [name, format_size(phase.planned_peak_bytes), phase.chunk, phase.batch, phase.group]
        for name, phase in decided.phases.items()
    ]
    verdict = "fits" if decided.fits else "does not fit"
    return "\n".join(
        [
            table(["phase", "peak", "chunk", "batch", "group"], rows),
            f"{verdict} {format_size(decided.budget_bytes)}; "
            f"the smallest budget that fits is {format_size(decided.minimum_budget_bytes)}",
            *([f"a larger budget is of no use: {decided.narrowed}"] if decided.narrowed else []),
            *([_spaced(decided.space)] if decided.space is not None else []),
        ]
    )


def _spaced(space: DiskSpace) -> str:
    """What of the disk the cache will take."""
    wanted = format_size(space.cache_bytes - space.present_bytes)
    line = f"the cache takes {wanted} more of {format_size(space.free_bytes)} that are free"
    if space.missing_bytes:
        return f"{line}: {format_size(space.missing_bytes)} are missing in {space.folder}"
    return line


def trained(result: RunResult, report: Path) -> str:
    """A training's answer in a few lines: accuracies, memory against the budget, where it lies."""
    from edgeladder.core.command_line import command  # requests, when a training is over

    accuracy, memory = result.accuracy, result.memory
    lines = [
        f"accuracy on {accuracy.split}: "
        f"tuned {with_interval(accuracy.tuned, accuracy.count)}, "
        f"zero-shot {with_interval(accuracy.zero_shot, accuracy.count)}; 95 % intervals"
    ]
    for name, phase in memory.phases.items():
        lines.append(
            f"{name}: peak {format_size(phase.measured_peak_bytes)} "
            f"(planned {format_size(phase.planned_peak_bytes)})"
        )
    if result.unlabelled:
        lines.append(result.unlabelled.told())
    if result.condensed:
        lines.append(_condensed(result.condensed))
    lines.append(f"adapter: {format_size(result.adapter_bytes)}")
    lines.append(f"budget {format_size(memory.budget_bytes)}, limit: {memory.enforcement}")
    if result.provider.accelerates:
        lines.append(f"image tower: {result.provider.reason}")
    lines.append(f"run: {result.run} ({result.steps} steps, engine {result.engine})")
    lines.append(f"report: {report}")
    lines.append(f"next: {command('predict', '--run', result.run)} PICTURE.jpg")
    return "\n".join(lines)


def _condensed(it: Condensed) -> str:
    """Prompts and a step's time, before and after."""
    times = [
        f"{ms:.1f} ms" if ms is not None else "-" for ms in (it.step_ms_before, it.step_ms_after)
    ]
    return (
        f"condensed: {it.prompts_after} of {it.prompts_before} prompts stay, "
        f"a step {times[0]} before, {times[1]} after"
    )
