"""What a training run is asked to do: plain values that travel as JSON to the worker processes.

Nothing but the standard library is imported here, because the supervisor that holds a request
counts inside the budget.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeladder.core.plan import MachineBaseline, Surrounding
from edgeladder.core.provider import ProviderChoice


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One `train` (or `precompute`, or `plan`) as the user asked for it; all paths as text."""

    bundle: str = "bundle"
    data: str = "data"
    unlabelled: str | None = None  # folder or .zip; None: `unlabelled/` in the data, if it is there
    cache: str = "cache"
    run: str | None = None  # None: a new folder below `runs/`
    device: str | None = None  # device profile by name or YAML file
    budget_bytes: int | None = None  # None: the device's default, else 80 % of what is available
    profile: str | None = None  # None: the profile the bundle was exported with
    overrides: list[str] = field(default_factory=list)  # `a.b=c`
    shots: int | None = None  # pictures per class; None: all
    engine: str = "auto"  # auto, stock, ort-training, or `module:factory`
    start: str | None = None  # adapter folder to begin from (fleet rounds); None: the bundle's
    previous: str | None = None  # folder of runs of which one is begun from; then that run
    start_note: str = ""  # what came of it, for a person
    condense: str | None = None  # run folder whose adapter to condense, in place of training anew
    resume: bool = False  # continue `run` from its newest checkpoint
    keep_checkpoints: bool = False  # after the run is finished too
    tensorboard: str | None = None  # folder for event files, besides metrics.jsonl; None: none
    seed: int | None = None  # None: the profile's
    threads: int | None = None  # None: the device's cores, at most this machine's
    cache_dtype: Literal["fp16", "int8"] = "fp16"
    views: int | None = None  # None: the profile's; precompute may ask for more, up to MOST_VIEWS
    limit: str = "auto"  # auto, none, or one layer by name
    restarts: int = 4  # of a worker that was killed or ran out of memory, with less each time
    mode: str | None = None  # None: the plan chooses fused, recompute or chunked
    chunk: int | None = None  # None: the plan chooses
    hold: bool | None = None  # activations between a chunked step's passes; None: what fits
    provider: str = "auto"  # of the image tower: auto, cpu, or one by name
    chosen: ProviderChoice | None = None  # what that came to on this machine; None: the CPU
    verify: bool = True  # hash the bundle's files before use
    baseline: MachineBaseline | None = None  # of this machine, filled in by the supervisor
    bare: bool = False  # whether to plan for a bare supervisor, though this process is larger
    supervisor_bytes: int = 0  # memory of the process that waits, filled in by the supervisor
    surrounding: Surrounding | None = None  # a cgroup with a limit around it, likewise

    @property
    def folder(self) -> str:
        """The run's folder, in a worker whose phase needs one.

        Raises:
            ValueError: the request is not of a run.
        """
        if self.run is None:
            raise ValueError("this phase needs a run directory")
        return self.run

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainRequest:
        """A request from `records.to_json`'s values; keys of other versions are left out."""
        known = {item.name for item in dataclasses.fields(cls)}
        told = {key: value for key, value in values.items() if key in known}
        if isinstance(told.get("baseline"), dict):
            told["baseline"] = MachineBaseline.from_json(told["baseline"])
        if isinstance(told.get("surrounding"), dict):
            told["surrounding"] = Surrounding(**told["surrounding"])
        if isinstance(told.get("chosen"), dict):
            told["chosen"] = ProviderChoice(**told["chosen"])
        return cls(**told)
