"""The precompute worker: pictures and class names through the frozen towers into the cache."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgeladder.budget import policy
from edgeladder.core.bundle import Bundle
from edgeladder.core.events import Decoding, Progress
from edgeladder.core.job import PhaseOrder, PrecomputeResult
from edgeladder.core.orders import Outcome
from edgeladder.core.plan import PhasePlan
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.trim import trim_heap
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.towers.fill_cache import PrecomputeSizes, Wanted, precompute
from edgeladder.runtime.towers.runner import TowerSizes

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control

_TELL_SECONDS = 0.2


class _LeaveError(Exception):
    """An order to leave: raised out of the work, which keeps every group before this one."""


def fill(order: PhaseOrder, control: Control) -> tuple[Outcome, PrecomputeResult | None]:
    """Compute what the cache lacks; writes the run's selection of samples.

    Args:
        order: the job, and sizes: whole, batch, group, max_pixels.
    """
    job, request = order.job, order.job.request
    bundle = Bundle.reopen(request.bundle)
    dataset = open_data(request.data)
    train, test = split(dataset, request.shots, job.seed)
    # the plan's, unless memory ran out with it
    chosen = job.plan.provider if order.sizes.provider else _on_the_cpu(job.plan.provider)
    leave: list[str] = []
    told_at = 0.0

    def obey() -> None:
        for order in control.take():
            if order in ("stop", "restart"):
                leave.append(order)
            elif order == "trim":
                trim_heap()
        if leave:
            raise _LeaveError

    def progress(done: int, total: int, note: str) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= _TELL_SECONDS or done == total:
            told_at = now
            control.tell(Progress(step=done, steps=total, note=note))
        obey()

    try:
        result = precompute(
            bundle,
            dataset,
            request.cache,
            Wanted(train, test, request.views or 0, request.cache_dtype, frozenset(order.avoid)),
            sizes=tower_sizes(order.sizes, job.threads, chosen),
            progress=progress,
            on_group=obey,
            on_decode=lambda path: control.tell(Decoding(path=path)),
        )
    except _LeaveError:
        return ("stop" if "stop" in leave else "restart"), None
    if request.run:
        run = RunDirectory(request.run)
        result.selection.save(run.selection)
    return "done", PrecomputeResult(
        new=result.new,
        reused=result.reused,
        text_new=result.text_new,
        text_reused=result.text_reused,
        skipped_inputs=result.skipped,
        seconds=round(result.seconds, 3),
        text_seconds=round(result.text_seconds, 3),
        images_per_second=round(result.images_per_second, 3),
        provider=chosen,
    )


def _on_the_cpu(planned: ProviderChoice) -> ProviderChoice:
    if not planned.accelerates:
        return planned
    return ProviderChoice(reason=f"memory ran out with {planned.name}")


def tower_sizes(sizes: PhasePlan, threads: int, chosen: ProviderChoice) -> PrecomputeSizes:
    """The plan's choice as precompute takes it; what it leaves open is the policy's to say."""
    whole = bool(sizes.whole)
    accelerates = chosen.accelerates  # then class names pass their tower before it, streamed
    return PrecomputeSizes(
        image=TowerSizes(
            group=sizes.group or policy.GROUP,
            batch=sizes.batch or policy.IMAGE_BATCH,
            threads=threads,
            whole=whole,
            provider=chosen,
            gpu_limit_bytes=sizes.gpu_limit_bytes,
        ),
        text=TowerSizes(
            group=policy.TEXT_GROUP,
            batch=policy.TEXT_BATCH if accelerates else sizes.batch or policy.TEXT_BATCH,
            threads=threads,
            whole=whole and not accelerates,
        ),
        max_pixels=sizes.max_pixels or policy.EXACT_PIXELS,
        picture_bytes=sizes.picture_bytes,
    )
