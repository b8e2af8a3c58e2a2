"""Two runs on the same pictures: one worker after the other under the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from edgeladder.core.comparison import Comparison, Judgements, compared
from edgeladder.core.errors import DataError
from edgeladder.core.inference import InferenceRequest
from edgeladder.core.memory_record import MemoryResult
from edgeladder.jobs.inference import run_inference

Progress = Callable[..., None]  # (phase, done, total, note)


def compare(
    old: str, request: InferenceRequest, progress: Progress | None = None
) -> tuple[Comparison, MemoryResult]:
    """Hold the run of `request` against an older one, on pictures that neither was trained on.

    Args:
        old: run directory of the older one, on whatever bundle.
        request: a `judge` request of the new one; data, cache and split as for `evaluate`.
        progress: told (phase, done, total, note).

    Raises:
        ConfigError, DataError, IntegrityError: as `evaluate`; no picture that neither has seen.
        BudgetError: nothing fits.
        Interrupted: SIGINT or SIGTERM came.
    """
    like = request.run
    earlier = replace(request, run=old, bundle=None, cache=request.cache, like=like)
    found, memory = [], []
    for name, asked in (("old", earlier), ("new", replace(request, like=like))):
        result, used = run_inference(asked, _named(name, progress))
        found.append(cast("Judgements", result))
        memory.append(used)
    answer = compared(old, found[0], like, found[1])
    if not answer.count and not answer.new_classes_count:
        raise DataError(
            f"there is no picture that neither run was trained on ({answer.trained_on} were)",
            where=like,
            remedy="name pictures that both have not seen with --data",
        )
    phases = {
        name: next(iter(used.phases.values()))
        for name, used in zip(("judge_old", "judge_new"), memory, strict=True)
    }
    actions = [action for used in memory for action in used.actions]
    return answer, replace(memory[1], phases=phases, actions=actions)


def _named(name: str, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    told = progress

    def tell(phase: str, *event: Any) -> None:
        told(f"{phase} {name}", *event)

    return tell
