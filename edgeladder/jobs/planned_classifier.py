"""What the workers of predict, evaluate, deploy and serve share: open, plan, classify, obey."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edgeladder.budget import kernel_marks
from edgeladder.budget.planner import check, plan_inference
from edgeladder.budget.workload import InferenceWorkload
from edgeladder.core.events import Decoding, Planned, Progress
from edgeladder.core.inference import PHASE_OF, Evaluation, InferenceOrder, Predictions
from edgeladder.core.orders import Outcome
from edgeladder.core.plan import PhasePlan, Plan
from edgeladder.core.provider import ProviderChoice
from edgeladder.jobs.control import Control, LeaveError, obey
from edgeladder.jobs.machine_baseline import machine_baseline
from edgeladder.runtime.classifier import Classifier, InferenceSizes, OpenedRun
from edgeladder.runtime.pictures.decode_watch import DecodeWatch

Result = TypeVar("Result")
_UNHASHED = (
    "this adapter is of a version before 0.3: nothing tells whether its adapter.json was changed; "
    "`edgeladder train --resume RUN` writes it anew"
)


def with_classifier(
    order: InferenceOrder, control: Control, work: Callable[[Classifier], Result]
) -> tuple[Outcome, Result | None]:
    """Plan, open the classifier with the plan's sizes, and work.

    Raises:
        BudgetError: nothing fits; the smallest budget that would is named.
    """
    request = order.request
    bundle = Path(request.bundle) if request.bundle else None
    run = OpenedRun.open(Path(request.run), bundle, request.classes)
    plan = decide(order, run)
    control.tell(Planned(plan=plan))
    if run.adapter.record.is_unhashed:
        control.tell(Progress(step=0, note=_UNHASHED))
    if order.only_plan:
        return "done", None
    told = order.sizes or plan.phases[PHASE_OF[request.command]]
    chosen = plan.provider if told.provider or not plan.provider.accelerates else ProviderChoice()
    sizes = _sizes(told, chosen)
    try:
        with Classifier(
            run,
            sizes,
            threads=request.threads,
            on_batch=lambda samples: obey(control),
            watch=decode_watch(order, control),
        ) as classifier:
            return "done", _with_provider(work(classifier), chosen)
    except LeaveError as leave:
        return leave.outcome, None


def decode_watch(order: InferenceOrder, control: Control) -> DecodeWatch:
    """Tells the supervisor which picture is being decoded, and refuses those it names."""
    return DecodeWatch(order.avoid, lambda path: control.tell(Decoding(path=path)))


def _with_provider(found: Result, chosen: ProviderChoice) -> Result:
    """An answer that says what ran the image tower, where its record has a place for it."""
    if isinstance(found, (Predictions, Evaluation)):
        return replace(found, provider=chosen)
    return found


def decide(order: InferenceOrder, run: OpenedRun) -> Plan:
    """The plan of the order's phase.

    Raises:
        BudgetError: nothing fits.
    """
    adapter, manifest = run.adapter, run.bundle.manifest
    prompts = [len(texts) for texts in run.vocabulary.prompts()]
    workload = InferenceWorkload(
        manifest=manifest,
        classes=len(prompts),
        prompts=sum(prompts),
        most_prompts=max(prompts),
        head_bytes=sum(
            array.nbytes
            for arrays in (adapter.head_arrays, adapter.known_arrays)
            for array in arrays.values()
        ),
        files={name: record.size for name, record in manifest.files.items()},
        dtype=order.request.form.dtype,
        resize=order.request.form.include_resize,
        provider=order.request.chosen or ProviderChoice(),
    )
    baseline = machine_baseline()
    plan = plan_inference(
        workload,
        PHASE_OF[order.request.command],
        baseline,
        order.budget_bytes,
        supervisor_bytes=order.supervisor_bytes,
        planning_bytes=order.supervisor_bytes + kernel_marks.high_water(os.getpid()),
    )
    plan = replace(plan, surrounding=order.surrounding)
    check(plan)
    return plan


def _sizes(told: PhasePlan, chosen: ProviderChoice) -> InferenceSizes:
    """The plan's choice as the classifier takes it; what is not said keeps its default."""
    default = InferenceSizes()
    return InferenceSizes(
        whole=default.whole if told.whole is None else told.whole,
        batch=told.batch or default.batch,
        group=told.group or default.group,
        class_chunk=told.chunk or default.class_chunk,
        max_pixels=told.max_pixels or default.max_pixels,
        picture_bytes=told.picture_bytes,
        provider=chosen,
        gpu_limit_bytes=told.gpu_limit_bytes,
    )
