"""`edgeladder precompute`, `plan`, `train`: what needs the memory budget.

This process stays small: it holds the request and waits, while workers of the supervisor do the
work, and its memory counts inside the budget.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from edgeladder.budget.policy import wants_bare_supervisor
from edgeladder.cli import options
from edgeladder.cli.gathered import gathered
from edgeladder.cli.output import Answer, table
from edgeladder.cli.progress import Progress
from edgeladder.core.errors import ConfigError
from edgeladder.core.records import to_json
from edgeladder.core.sizes import format_size

may_step_aside = False  # set by the console script: only a process of our own may be replaced


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (precompute, plan, train):
        app.command()(command)


def _place(
    bundle: options.Bundle = options.BUNDLE,
    data: options.Data = options.DATA,
    cache: options.Cache = options.CACHE,
    device: options.Device = None,
    budget: options.Budget = None,
) -> dict[str, Any]:
    """What all three commands are told: on what, and within what."""
    limits = options.optional(device=device, budget_bytes=options.budget_bytes(budget))
    return {"bundle": str(bundle), "data": str(data), "cache": str(cache), **limits}


@gathered(place=_place)
def precompute(
    place: dict[str, Any],
    views: Annotated[
        int | None, typer.Option("--views", min=0, help="Augmented views per picture.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the cache: fp16 or int8.")] = "fp16",
    as_json: options.Json = False,
) -> Answer:
    """Run the frozen towers over pictures, once for each."""
    from edgeladder.jobs import supervisor

    _require(place)
    request = _request(place, views=views, cache_dtype=dtype)
    with Progress() as progress:
        filled, memory = supervisor.precompute(request, progress)
    values = {**to_json(filled), "memory": to_json(memory)}
    return Answer(values, lambda: _precomputed(values))


@gathered(place=_place)
def plan(
    place: dict[str, Any],
    profile: options.Profile = None,
    settings: options.Settings = None,
    shots: options.Shots = None,
    engine: options.Engine = "auto",
    as_json: options.Json = False,
) -> Answer:
    """Predict peak memory and the smallest budget that fits."""
    from edgeladder.jobs import supervisor

    _require(place)
    request = _request(
        place, profile=profile, overrides=settings,
        shots=shots, engine=engine,
    )  # fmt: skip
    request = dataclasses.replace(request, bare=_small(request))  # as `train` will run it
    values = supervisor.plan(request).to_json()
    return Answer(values, lambda: _planned(values), exit_code=0 if values["fits"] else 3)


@gathered(place=_place)
def train(
    place: dict[str, Any],
    profile: options.Profile = None,
    settings: options.Settings = None,
    shots: options.Shots = None,
    engine: options.Engine = "auto",
    seed: options.Seed = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run directory to make. [runs/<stamp>]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of the cache: fp16 or int8. [fp16]")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="Begin from this adapter's parameters. [the bundle's]"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this run from its checkpoint.")
    ] = None,
    as_json: options.Json = False,
) -> Answer:
    """Plan, precompute, train the ladder, evaluate, report."""
    from edgeladder.jobs import supervisor

    if resume is None:
        _require(place)
    else:
        options.require(run=resume)
    request = _request(
        place, profile=profile, overrides=settings,
        shots=shots, engine=engine, seed=seed, cache_dtype=dtype,
        start=str(start) if start else None,
        run=str(resume or run) if resume or run else None, resume=resume is not None,
    )  # fmt: skip
    if may_step_aside and _small(request):
        raise StepAside(request)
    with Progress() as progress:
        values = to_json(supervisor.train(request, progress))
    return finished(values)


class StepAside(Exception):  # noqa: N818 - not an error
    """This process is too large for the budget: it leaves the training to a bare supervisor."""

    def __init__(self, request: Any):
        super().__init__()
        self.request = request

    def become(self, as_json: bool) -> NoReturn:
        """Be the bare supervisor from here on; `edgeladder.cli.finish` says how it went."""
        from edgeladder.jobs import supervisor

        then = ["-m", "edgeladder.cli.finish", *(["--json"] if as_json else [])]
        supervisor.become(self.request, as_json=as_json, then=then)


def _small(request: Any) -> bool:
    """Whether the budget is one in which this process's own 30 MB matter."""
    budget = request.budget_bytes
    if budget is None and request.device:
        from edgeladder.core.yaml_config import load_device

        budget = load_device(request.device).default_budget_bytes
    return wants_bare_supervisor(budget)


def finished(values: dict[str, Any]) -> Answer:
    """Write the report of a training and answer with its result."""
    from edgeladder.report import write_report  # only now: what it imports counts as well

    values["report"] = str(write_report(Path(values["run"])))
    return Answer(values, lambda: trained(values))


def _require(place: dict[str, Any]) -> None:
    options.require(bundle=Path(place["bundle"]), pictures=Path(place["data"]))


def _request(place: dict[str, Any], **more: Any) -> Any:
    """A request of only what was given, so that each default stays in one place."""
    from edgeladder.core.request import TrainRequest

    if more.get("cache_dtype") not in (None, "fp16", "int8"):
        raise ConfigError(
            f"unknown --dtype {more['cache_dtype']!r} of the cache", remedy="use fp16 or int8"
        )
    return TrainRequest(**place, **options.optional(**more))


def _precomputed(values: dict[str, Any]) -> str:
    text = f"{values['new']} pictures computed, {values['reused']} already there"
    skipped = values.get("skipped_inputs") or values.get("skipped") or []
    return text + (f", {len(skipped)} skipped" if skipped else "")


def _planned(values: dict[str, Any]) -> str:
    rows = [
        [name, format_size(phase["planned_peak_bytes"]), *(phase.get(k) for k in _SIZES)]
        for name, phase in values["phases"].items()
    ]
    verdict = "fits" if values["fits"] else "does not fit"
    budget = values.get("budget_bytes")
    return "\n".join(
        [
            table(["phase", "peak", *_SIZES], rows),
            f"{verdict}{' ' + format_size(budget) if budget else ''}; "
            f"the smallest budget that fits is {format_size(values['minimum_budget_bytes'])}",
        ]
    )


_SIZES = ["chunk", "batch", "group"]


def trained(values: dict[str, Any]) -> str:
    """A training's answer in a few lines: accuracies, memory against the budget, where it lies."""
    accuracy, memory = values["accuracy"], values["memory"]
    lines = [
        f"accuracy on {accuracy['split']}: zero-shot {_percent(accuracy['zero_shot'])}, "
        f"tuned {_percent(accuracy['tuned'])}"
    ]
    for name, phase in memory["phases"].items():
        lines.append(
            f"{name}: peak {_size(phase.get('measured_peak_bytes'))} "
            f"(planned {_size(phase.get('planned_peak_bytes'))})"
        )
    lines.append(f"budget {_size(memory.get('budget_bytes'))}, limit: {memory['enforcement']}")
    lines.append(f"run: {values['run']} ({values['steps']} steps, engine {values['engine']})")
    lines.append(f"report: {values['report']}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _size(size_bytes: float | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes)
