"""The precompute worker: pictures and class names through the frozen towers into the cache."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgeladder.budget import policy
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import Interrupted
from edgeladder.core.events import Decoding, Progress
from edgeladder.core.job import Job, PhaseOrder, PrecomputeResult
from edgeladder.core.orders import Outcome
from edgeladder.core.plan import PhasePlan
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.trim import trim_heap
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.runtime.pictures.dataset import Dataset, open_data, split
from edgeladder.runtime.pictures.unlabelled import with_unlabelled
from edgeladder.runtime.towers.fill_cache import PrecomputeResult as Filled
from edgeladder.runtime.towers.fill_cache import PrecomputeSizes, Wanted, looked_up, precompute
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
    wanted = _wanted(job, dataset, frozenset(order.avoid))
    chosen = _chosen(job, order.sizes)
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
            wanted,
            sizes=tower_sizes(order.sizes, job.threads, chosen),
            progress=progress,
            on_group=obey,
            on_decode=lambda path: control.tell(Decoding(path=path)),
        )
    except _LeaveError:
        return ("stop" if "stop" in leave else "restart"), None
    return "done", _kept(job, result, chosen)


def already_filled(
    job: Job, bundle: Bundle, dataset: Dataset, control: Control
) -> PrecomputeResult | None:
    """The phase's result where the cache holds everything and no worker is needed for it.

    Writes the run's selection of samples then. None: a worker has to look, and to compute.

    Raises:
        Interrupted: the order to stop came.
    """
    request = job.request
    chosen = _chosen(job, job.plan.phases["precompute"])

    def obey() -> None:
        if "stop" in control.take():
            raise Interrupted("stopped while planning")

    result = looked_up(
        bundle,
        dataset,
        request.cache,
        _wanted(job, dataset),
        chosen.arithmetic,
        most_bytes=policy.LOOKED_UP_BYTES,
        obey=obey,
    )
    return None if result is None else _kept(job, result, chosen)


def _wanted(job: Job, dataset: Dataset, avoid: frozenset[str] = frozenset()) -> Wanted:
    """Every picture of the job, and those without a label that may teach."""
    request = job.request
    train, test = split(dataset, request.shots, job.seed)
    use = job.counts.unlabelled > 0
    unlabelled = with_unlabelled(dataset, request.unlabelled, use=use).unlabelled
    return Wanted(train, test, request.views or 0, request.cache_dtype, avoid, unlabelled)


def _kept(job: Job, result: Filled, chosen: ProviderChoice) -> PrecomputeResult:
    """The result as it crosses to the supervisor; the selection goes into the run's folder."""
    if job.request.run:
        result.selection.save(RunDirectory(job.request.run).selection)
    return PrecomputeResult(
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


def _chosen(job: Job, sizes: PhasePlan) -> ProviderChoice:
    """The plan's provider, unless memory ran out with it."""
    return job.plan.provider if sizes.provider else _on_the_cpu(job.plan.provider)


def _on_the_cpu(planned: ProviderChoice) -> ProviderChoice:
    if not planned.accelerates:
        return planned
    return ProviderChoice(reason=f"memory ran out with {planned.name}")


def tower_sizes(sizes: PhasePlan, threads: int, chosen: ProviderChoice) -> PrecomputeSizes:
    """The plan's choice as precompute takes it; what it leaves open is the policy's to say."""
    whole = bool(sizes.whole)
    accelerates = chosen.accelerates  # then class names pass their tower before it, streamed
    image = sizes.batch or policy.IMAGE_BATCH
    text = policy.TEXT_BATCH if accelerates else sizes.batch or policy.TEXT_BATCH
    return PrecomputeSizes(
        image=TowerSizes(
            group=sizes.group or policy.GROUP,
            batch=image,
            threads=threads,
            lanes=1 if accelerates else policy.lanes(image, threads),
            whole=whole,
            provider=chosen,
            gpu_limit_bytes=sizes.gpu_limit_bytes,
        ),
        text=TowerSizes(
            group=policy.TEXT_GROUP,
            batch=text,
            threads=threads,
            lanes=policy.lanes(text, threads),
            whole=whole and not accelerates,
        ),
        max_pixels=sizes.max_pixels or policy.EXACT_PIXELS,
        picture_bytes=sizes.picture_bytes,
    )
