"""A provider that its trial found good: planned with what it was measured to take, or left out."""

from __future__ import annotations

from dataclasses import replace

from edgeladder.budget import policy
from edgeladder.budget.provider_costs import settled, with_provider
from edgeladder.budget.workload import Workload
from edgeladder.core.bundle import Bundle
from edgeladder.core.plan import MachineBaseline, PhasePlan, Plan
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.shipped import NANO_BUNDLE

MB = 1_000_000
BASELINE = MachineBaseline(
    supervisor_bytes=15 * MB,
    worker_bytes=60 * MB,
    settled_bytes=50 * MB,
    pictures_bytes=5 * MB,
    training_bytes=0,
    file_bytes=20 * MB,
    data_slack_bytes=90 * MB,
)
CUDA = ProviderChoice(
    name="cuda", arithmetic="cuda tf32 1", worker_bytes=300 * MB, gpu_bytes=100 * MB, reason="fast"
)
ON_CPU = PhasePlan(
    planned_peak_bytes=200 * MB,
    batch=4,
    whole=True,
    parts={"supervisor": 15 * MB, "baseline": 80 * MB, "backbone": 100 * MB, "cache": 5 * MB},
)


def workload(choice: ProviderChoice) -> Workload:
    manifest = Bundle.open(NANO_BUNDLE, verify=False).manifest
    return Workload(manifest=manifest, classes=3, pictures=9, batch=4, provider=choice)


def test_the_measured_peak_and_the_gpus_share_are_planned() -> None:
    first, *others = with_provider([ON_CPU], workload(CUDA), BASELINE, 900 * MB)
    assert others == [ON_CPU]
    assert (first.provider, first.batch) == ("cuda", policy.PROVIDER_BATCH)
    assert first.parts["provider"] == 300 * MB and first.parts["gpu"] == 100 * MB
    assert "backbone" not in first.parts and first.parts["cache"] == 5 * MB
    assert first.planned_peak_bytes == sum(first.parts.values())
    # the rest of the room is the GPU arena's, which is told so
    assert first.gpu_limit_bytes == 900 * MB - first.planned_peak_bytes + 100 * MB
    assert list(with_provider([ON_CPU], workload(ProviderChoice()), BASELINE, 9)) == [ON_CPU]


def test_a_picture_at_a_time_stays_so() -> None:
    first = next(with_provider([replace(ON_CPU, batch=1)], workload(CUDA), BASELINE, 900 * MB))
    assert first.batch == 1


def planned(phase: PhasePlan) -> Plan:
    return Plan(
        budget_bytes=MB,
        minimum_budget_bytes=MB,
        fits=True,
        phases={"precompute": phase},
        classes=3,
        pictures=9,
        baseline=BASELINE,
    )


def test_the_plan_says_what_was_chosen_and_why_not() -> None:
    kept = settled(planned(replace(ON_CPU, provider="cuda")), CUDA)
    assert kept.provider == CUDA
    assert Plan.from_json(kept.to_json()) == kept
    left = settled(planned(ON_CPU), CUDA)
    assert left.provider.name == "cpu" and not left.provider.arithmetic
    assert "no room for the 400 MB" in left.provider.reason


def test_when_memory_runs_out_the_cpu_is_next() -> None:
    sizes = replace(ON_CPU, provider="cuda", gpu_limit_bytes=7)
    smaller = policy.shrink(planned(ON_CPU), "precompute", sizes)
    assert smaller.provider is None and smaller.gpu_limit_bytes is None and smaller.whole
    assert policy.shrink(planned(ON_CPU), "precompute", smaller).whole is False
