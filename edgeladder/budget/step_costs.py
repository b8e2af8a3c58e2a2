"""What training and evaluation need, for each way a step can be computed.

peak = supervisor + baseline + loaded graphs + parameters, gradients, moments
     + inputs of a step (windows of one side where chunked) + activations of a window
     + activations held from the first pass for the second
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from edgeladder.budget.costs import COSTS
from edgeladder.budget.head_costs import (
    answer_bytes,
    head_bytes,
    head_pictures,
    pseudo_label_bytes,
)
from edgeladder.budget.policy import (
    CHUNKS,
    EVALUATE_CHUNK,
    EVALUATE_CHUNKS,
    EVALUATE_WINDOW,
    FEWEST_HEAD_PICTURES,
    KEEP_BYTES,
)
from edgeladder.budget.windows import Windows
from edgeladder.budget.workload import (
    Asked,
    InferenceWorkload,
    Workload,
    parameter_count,
    phase_of,
    tap_bytes,
    value_count,
)
from edgeladder.core.plan import MachineBaseline, PhasePlan

_COUNT_BYTES = 3  # of a pair of classes: a count of 16 bits, and of 8 before it grew
_CLASS_RECORD = 1_200  # of a class's accuracies and intervals, as Python's dict
_EVALUATED = ("encode_image", "encode_text")


def train_phases(
    workload: Workload,
    baseline: MachineBaseline,
    base: int,
    room: int,
    asked: Asked,
) -> Iterator[PhasePlan]:
    """Fastest first; 8-bit moments only after every way with fp32 moments.

    Args:
        base: bytes of the waiting supervisor.
        room: what the budget leaves room for; chunked ways fill it with held activations.
        asked: for by the user: mode, chunk and hold.
    """
    kinds = ("fp32", "int8") if workload.moments == "auto" else (workload.moments,)
    ways = [("fused", True), ("recompute", True), ("fused", False), ("recompute", False)]
    if workload.engine == "ort-training":
        ways, kinds = ways[:1], ("fp32",)
    for moments in kinds:
        for way, arena in ways:
            if asked.mode in (None, way):
                yield _train_phase(workload, baseline, base, way, moments, arena=arena)
        if asked.mode in (None, "chunked") and workload.engine != "ort-training":
            yield from _chunked(workload, baseline, base, room, moments, asked)


def _chunked(
    workload: Workload,
    baseline: MachineBaseline,
    base: int,
    room: int,
    moments: str,
    asked: Asked,
) -> list[PhasePlan]:
    """Every chunk, with as many activations held as there is room for; fastest first."""
    most = max(workload.batch, workload.classes)
    sizes = (asked.chunk,) if asked.chunk else tuple(size for size in CHUNKS if size < most) or (1,)
    found: list[tuple[float, PhasePlan]] = []
    for size in sizes:
        windows = Windows(workload.manifest.ladder, workload.batch, workload.classes, size)
        bare = _train_phase(workload, baseline, base, "chunked", moments, windows=windows)
        found.append((windows.seconds(0), bare))
        if asked.hold is False:
            continue
        spare = float("inf") if asked.hold else float(room - bare.planned_peak_bytes)
        for _ in range(3):  # the graphs that hold take room too, known once they are chosen
            held = windows.most_held(max(0.0, spare))
            if not held:
                break
            phase = _train_phase(
                workload, baseline, base, "chunked", moments, windows=windows, hold=held
            )
            if asked.hold or phase.planned_peak_bytes <= room:
                found.append((windows.seconds(held), phase))
                break
            spare -= phase.planned_peak_bytes - room
    return [phase for _, phase in sorted(found, key=lambda pair: pair[0])]


def _state_parts(workload: Workload, moments: str) -> dict[str, float]:
    count = parameter_count(workload.manifest)
    slots = 2 if workload.optimizer == "adamw" else 1
    each = 4.0 if moments == "fp32" else 1.0 + 4 / 256  # one fp32 scale per block of 256
    parts = {
        "parameters": 4.0 * value_count(workload.manifest),
        "gradients": 4.0 * count,
        "moments": slots * each * count,
    }
    if workload.average:
        parts["average"] = 10.0 * count  # itself, the weights it is drawn to, a tensor's steps
    return {name: size * COSTS.state_slack for name, size in parts.items()}


def _train_phase(
    workload: Workload,
    baseline: MachineBaseline,
    base: int,
    mode: str,
    moments: str,
    *,
    arena: bool = False,
    windows: Windows | None = None,
    hold: int = 0,
) -> PhasePlan:
    manifest = workload.manifest
    images = min(workload.batch, windows.chunk) if windows else workload.batch
    classes = min(workload.classes, windows.class_chunk) if windows else workload.classes
    width = manifest.model.embedding_dim
    image_taps = images * tap_bytes(manifest, "image")
    text_taps = classes * tap_bytes(manifest, "text")
    # one side's window at a time where chunked, both at once where not
    inputs = max(image_taps, text_taps) if windows else image_taps + text_taps
    # as read, as tuned and as gradient; of classes in windows all are there only as tuned
    # embeddings, whose place their gradient takes
    embeddings = 4 * width * (4 * workload.batch + (1 if windows else 4) * workload.classes)
    logits = 4 * 4 * workload.batch * workload.classes
    used = windows.graphs(hold) if windows else (mode,)
    activation = activation_bytes(workload, used, images, classes)
    if mode == "recompute":
        activation *= COSTS.recompute
    if arena:
        activation = activation * COSTS.arena_share + COSTS.arena
    activation += COSTS.picture_values * images + COSTS.class_values * classes
    parts: dict[str, float] = {
        "supervisor": base,
        "baseline": baseline.settled_bytes + COSTS.hot_code,
        "graphs": graph_bytes(workload, used) + 2 * COSTS.session,  # the optimiser's two
        **_state_parts(workload, moments),
        "inputs": inputs + embeddings + logits,
        "activations": activation,
        "held": hold,
        "cache": COSTS.cache_reader + _places_bytes(workload),
        "heap": COSTS.heap,
    }
    if workload.engine == "ort-training":
        parts["baseline"] += baseline.training_bytes
        parts["activations"] *= COSTS.training_share
    _add_start(parts, baseline)
    return phase_of(
        parts,
        batch=workload.batch,
        chunk=windows.chunk if windows else None,
        class_chunk=windows.class_chunk if windows else None,
        mode=mode,
        moments=moments,
        arena=arena,
        keep_bytes=0 if windows else min(text_taps, KEEP_BYTES),
        hold_bytes=hold if windows else None,
    )


def _places_bytes(workload: Workload) -> float:
    """What is known of every cached picture and view without reading it."""
    trained = (COSTS.per_picture + COSTS.per_view * workload.views) * workload.pictures
    # an unlabelled picture trains in every view as it is
    return float(trained + (COSTS.per_picture + COSTS.per_view) * workload.unlabelled)


def graph_bytes(workload: Workload | InferenceWorkload, names: tuple[str, ...]) -> float:
    """Bytes of graphs that are kept loaded."""
    records = workload.manifest.ladder.graphs
    return sum(
        float(COSTS.session + COSTS.node * records[name].nodes)
        + COSTS.graph_file * workload.files.get(records[name].file, 0)
        for name in names
    )


def activation_bytes(
    workload: Workload | InferenceWorkload, names: tuple[str, ...], images: int, classes: int
) -> float:
    """Bytes of intermediate values at the highest moment of any of these graphs."""
    records = workload.manifest.ladder.graphs
    sums = [
        float(fixed + images * image + classes * text)
        for name in names
        for fixed, image, text in records[name].peaks
    ]
    return max(sums, default=0.0)


def evaluate_phases(
    workload: Workload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """Best first: ever fewer pictures or classes at a time, then fewer for the head to fit."""
    manifest: Any = workload.manifest
    count = value_count(manifest)
    for pictures, chunk in itertools.product(head_pictures(workload), EVALUATE_CHUNKS):
        parts: dict[str, float] = {
            "supervisor": base,
            "baseline": baseline.settled_bytes + COSTS.hot_code,
            "graphs": graph_bytes(workload, _EVALUATED) + 2 * COSTS.session,
            "parameters": 8.0 * count,
            "inputs": chunk * max(tap_bytes(manifest, "image"), tap_bytes(manifest, "text")),
            "classes": _judged_classes_bytes(workload),
            "activations": activation_bytes(workload, _EVALUATED, chunk, chunk),
            "cache": COSTS.cache_reader + _places_bytes(workload),
            "heap": COSTS.heap,
        }
        fitting, judging = head_bytes(workload, pictures)
        # it is fitted before the graphs are loaded
        later = parts["graphs"] + parts["inputs"] + parts["activations"] + COSTS.hot_code
        answering, kept = answer_bytes(workload, pictures)
        parts["known"] = kept
        parts["head"] = max(judging, fitting - later, judging + answering - later, 0.0)
        _add_start(parts, baseline, COSTS.evaluate_start)
        yield phase_of(parts, chunk=chunk, head_pictures=pictures or None)


def pseudo_label_phases(
    workload: Workload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """Best first: ever fewer pictures looked at together; a budget that has no room uses none."""
    most = workload.pseudo_labelled
    fewest = FEWEST_HEAD_PICTURES * workload.classes
    for pictures in (most, *(n for n in (most // 2, most // 4, most // 8) if n >= fewest)):
        parts: dict[str, float] = {
            "supervisor": base,
            "baseline": baseline.settled_bytes + COSTS.hot_code,
            "cache": COSTS.cache_reader + _places_bytes(workload),
            "heap": COSTS.heap,
            "head": pseudo_label_bytes(workload, pictures),
        }
        _add_start(parts, baseline, COSTS.evaluate_start)
        yield phase_of(parts, chunk=EVALUATE_CHUNK, head_pictures=pictures)


def _judged_classes_bytes(workload: Workload) -> float:
    """What an evaluation holds of all classes: tuned embeddings, and the larger of two moments.

    While the temperature is fitted, logits of a window of pictures four times; while pictures are
    judged, those of a chunk, who was taken for whom, and what is said of each class.
    """
    classes, width = float(workload.classes), int(workload.manifest.model.embedding_dim)
    logits = 16 * classes
    fitting = logits * min(workload.pictures, EVALUATE_WINDOW)
    judging = logits * EVALUATE_CHUNK + _COUNT_BYTES * classes**2 + _CLASS_RECORD * classes
    return 4 * width * classes + max(fitting, judging)


def _add_start(parts: dict[str, float], baseline: MachineBaseline, more: float = 0.0) -> None:
    """Where a phase's work takes less than its start, before which nothing has settled yet."""
    start = parts["supervisor"] + baseline.worker_bytes + COSTS.start + more
    start += parts.get("parameters", 0.0)
    short = start - sum(parts.values())
    if short > 0:
        parts["start"] = short
