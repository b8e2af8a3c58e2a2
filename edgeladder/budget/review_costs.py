"""What looking through pictures needs: `check` and `suggest`.

peak = supervisor + baseline + a record of every picture
     + the larger of the towers, as precompute runs them, and what comes after they are gone: Gram
       matrices of a sample of the pictures, and the sample's features
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeladder.budget.inference_costs import predict_phases
from edgeladder.budget.policy import REVIEW_PICTURES
from edgeladder.budget.tower_costs import precompute_phases
from edgeladder.budget.workload import InferenceWorkload, Workload, phase_of
from edgeladder.core.plan import MachineBaseline, PhasePlan

_MATRICES = 6  # of the sample squared, float64, alive while a fold is fitted
_SCORES = 20  # of the sample by the classes, float64
_PICTURE_BYTES = 1900  # path, label, key, places and 256 numbers to compare one picture by
_CODE_BYTES = 12_000_000  # linear algebra and its threads' buffers


def review_phases(
    workload: InferenceWorkload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """The largest sample first, and for each the fastest way through the towers first."""
    asking = 0.0  # a run, once the towers are gone: as predict does in its smallest sizes
    if workload.run:
        least = [p.planned_peak_bytes for p in predict_phases(workload, baseline, base)]
        asking = min(least) + float(_PICTURE_BYTES * workload.pictures)
    towers = Workload(
        manifest=workload.manifest, classes=workload.classes, pictures=workload.pictures, batch=1
    )
    for most in REVIEW_PICTURES:
        after = _review_bytes(workload, most)
        for phase in precompute_phases(towers, baseline, base):
            parts: dict[str, float] = dict(phase.parts)
            parts["pictures"] = float(_PICTURE_BYTES * workload.pictures)
            parts["review"] = max(0.0, after - parts["backbone"] - parts["cache"])
            parts["run"] = max(0.0, asking - sum(parts.values()))
            sizes = {**phase.sizes(), "head_pictures": most}
            yield phase_of(parts, **sizes, disk_bytes=phase.disk_bytes)


def _review_bytes(workload: InferenceWorkload, most: int) -> float:
    sample = min(most, workload.pictures)
    matrices = 8.0 * _MATRICES * sample**2
    scores = 8.0 * _SCORES * sample * workload.classes
    return _CODE_BYTES + matrices + scores + 2.0 * sample * workload.feature_width
