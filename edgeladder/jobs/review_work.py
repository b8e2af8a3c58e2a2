"""What the workers of check and suggest share: bundle, plan, sizes, orders to obey, the cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.budget import kernel_marks
from edgeladder.budget.planner import check, plan_inference
from edgeladder.budget.workload import InferenceWorkload
from edgeladder.core.bundle import Bundle
from edgeladder.core.events import Planned, Progress
from edgeladder.core.inference import PHASE_OF, InferenceOrder
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.trim import release_startup_memory
from edgeladder.jobs.control import LeaveError, obey
from edgeladder.jobs.machine_baseline import machine_baseline
from edgeladder.jobs.planned_classifier import decode_watch
from edgeladder.jobs.precompute_phase import tower_sizes
from edgeladder.runtime.classifier import OpenedRun
from edgeladder.runtime.review.activations import Cached, cache_pictures, feature_width
from edgeladder.runtime.review.thumbnails import Square, squares

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control
    from edgeladder.runtime.pictures.dataset import Picture
    from edgeladder.runtime.pictures.decode_watch import DecodeWatch
    from edgeladder.runtime.towers.fill_cache import PrecomputeSizes

_TELL_SECONDS = 0.2


@dataclass
class ReviewWork:
    """One worker's plan and means."""

    bundle: Bundle
    folder: Path  # of the cache
    sizes: PrecomputeSizes
    most: int  # pictures of a sample
    threads: int
    control: Control
    watch: DecodeWatch
    _told_at: float = 0.0

    @classmethod
    def begin(
        cls, order: InferenceOrder, control: Control, bundle: Bundle, workload: InferenceWorkload
    ) -> ReviewWork:
        """Plan and tell the plan.

        Raises:
            BudgetError: nothing fits; the smallest budget that would is named.
        """
        request = order.request
        phase = PHASE_OF[request.command]
        plan = plan_inference(
            workload,
            phase,
            machine_baseline(),
            order.budget_bytes,
            supervisor_bytes=order.supervisor_bytes,
            planning_bytes=order.supervisor_bytes + kernel_marks.high_water(os.getpid()),
        )
        plan = replace(plan, surrounding=order.surrounding)
        check(plan)
        control.tell(Planned(plan=plan))
        told = order.sizes or plan.phases[phase]
        threads = request.threads or len(os.sched_getaffinity(0))
        most = plan.phases[phase].head_pictures or 1
        folder = Path(request.cache or "cache")
        sizes = tower_sizes(told, threads, ProviderChoice())  # the CPU: a cache others read too
        return cls(bundle, folder, sizes, most, threads, control, decode_watch(order, control))

    def obey(self) -> None:
        """Take orders. Raises LeaveError where one is to leave."""
        obey(self.control)

    def progress(self, done: int, total: int, note: str) -> None:
        """Tell how far the towers are, now and then."""
        now = time.monotonic()
        if now - self._told_at >= _TELL_SECONDS or done == total:
            self._told_at = now
            self.control.tell(Progress(step=done, steps=total, note=note))
        self.obey()

    def cached(self, pictures: Sequence[Picture], where: str) -> Cached:
        """All pictures through the cache; the towers are gone when it returns."""
        found = cache_pictures(
            self.bundle, pictures, self.folder, self.sizes, where=where,
            progress=self.progress, on_group=self.obey, watch=self.watch,
        )  # fmt: skip
        release_startup_memory()
        return found

    @property
    def square(self) -> Square:
        """A reader of pictures within the plan's limits."""
        preprocess = self.bundle.manifest.preprocess
        sizes = self.sizes
        return squares(preprocess, sizes.max_pixels, sizes.picture_bytes, self.watch)


def run_workload(
    bundle: Bundle, run: OpenedRun | None, pictures: int, classes: int
) -> InferenceWorkload:
    """What is to be looked through, and the run that is asked about it, if one is."""
    prompts = [1] * max(classes, 1)
    if run is not None:
        prompts = [len(texts) for texts in run.vocabulary.prompts()]
    arrays = run.adapter.head_arrays.values() if run is not None else ()
    return InferenceWorkload(
        manifest=bundle.manifest,
        classes=len(prompts),
        prompts=sum(prompts),
        most_prompts=max(prompts),
        head_bytes=sum(array.nbytes for array in arrays),
        files={name: record.size for name, record in bundle.manifest.files.items()},
        pictures=pictures,
        feature_width=feature_width(bundle),
        run=run is not None,
    )


def leaving(work: Callable[[], object]) -> tuple[Outcome, object | None]:
    """What the work found, or the order to leave that ended it."""
    try:
        return "done", work()
    except LeaveError as leave:
        return leave.outcome, None
