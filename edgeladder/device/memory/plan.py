"""Memory policy: what each phase will need, and the sizes under which it fits the budget.

Every peak is a sum over what is resident at the worst moment, from the manifest and sizes alone:

    supervisor + machine floor + loaded graphs + parameters, gradients, moments
               + inputs of a step (windowed where chunked) + activations of a chunk

`train` obeys what is decided here. The coefficients were fitted with `tools/bench/memory_grid.py`,
whose table is in docs/memory.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgeladder.config import format_size
from edgeladder.device.memory.floor import MachineFloor
from edgeladder.device.memory.guard import PLANNED
from edgeladder.errors import BudgetError

_MB = 1_000_000
_EXACT_PIXELS = 4096 * 4096  # larger pictures are decoded at a lower resolution anyway
_FEWEST_PIXELS = 2_000_000
_KEEP_BYTES = 64 * _MB  # of class activations: they are the same in every step
_CHUNKS = (128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Costs:
    """Fitted coefficients; bytes."""

    node: int = 6_500  # of a loaded graph: kernels, shapes, names
    graph_file: float = 2.0  # times the file's size: the parsed model
    state_slack: float = 1.03  # allocator rounding on large buffers
    session: int = 1_300_000  # beside its nodes
    recompute: float = 1.4  # times the graph's own estimate: rungs overlap a little
    heap: int = 4 * _MB  # fragmentation and Python objects while training
    cache_reader: int = 2 * _MB  # index pages and one tensor in flight
    per_picture: int = 40  # place, label and order in the train worker
    shard_buffer: int = 5 * _MB  # precompute: taps waiting for the next shard
    decoded_picture: int = 12 * _MB  # precompute: a picture of 2 megapixels while it is decoded
    decoded_pixel: float = 5.0  # 4 bytes of a decoded pixel, and its compressed file
    tokenizer: int = 12 * _MB  # its vocabulary
    tower_code: int = 14 * _MB  # library code and heap of opening and running segments
    start: int = 5 * _MB  # code and heap of opening the engine, before they settle
    hot_code: int = 18 * _MB  # library code that training itself runs
    arena: int = 6 * _MB  # kept by onnxruntime's heap beside what is in use
    arena_share: float = 1.2  # of activations, lost to its rounding
    segment_opening: float = 1.35  # times a segment's weights: its largest one is there twice
    stem_opening: float = 4.0  # a convolution's weights are reordered, with copies on the way
    token_table: float = 0.15  # of its bytes touched
    activation: float = 1.8  # times what was measured at export: inputs and outputs beside it
    segment_session: int = 500_000


COSTS = Costs()


@dataclass(frozen=True)
class PhasePlan:
    """One phase: its predicted peak and the sizes that give it."""

    planned_peak_bytes: int
    batch: int | None = None
    chunk: int | None = None
    group: int | None = None
    mode: str | None = None  # train: fused, recompute or chunked
    arena: bool | None = None  # train: whether onnxruntime keeps a heap of its own
    max_pixels: int | None = None  # precompute: of pictures decoded in full
    keep_bytes: int | None = None  # train: of decoded class activations kept between steps
    moments: str | None = None  # train: fp32 or int8
    whole: bool | None = None  # precompute: the whole tower in one go
    parts: dict[str, int] = field(default_factory=dict)  # what the peak is made of

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the sizes that do not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """All phases of a run under one budget."""

    budget_bytes: int
    minimum_budget_bytes: int
    fits: bool
    phases: dict[str, PhasePlan]
    classes: int
    pictures: int
    floor: MachineFloor
    least: dict[str, int]  # smallest peak each phase can be brought to

    def to_dict(self) -> dict[str, Any]:
        """The `plan` JSON of the design."""
        return {
            "fits": self.fits,
            "budget_bytes": self.budget_bytes,
            "minimum_budget_bytes": self.minimum_budget_bytes,
            "phases": {name: phase.to_dict() for name, phase in self.phases.items()},
            "classes": self.classes,
            "pictures": self.pictures,
            "floor": self.floor.to_dict(),
        }

    def only(self, name: str) -> Plan:
        """The plan of a command that runs one phase alone."""
        phase = self.phases[name]
        least = math.ceil(self.least[name] / PLANNED / _MB) * _MB
        return replace(
            self,
            phases={name: phase},
            minimum_budget_bytes=least,
            fits=least <= self.budget_bytes,
        )

    def check(self) -> None:
        """Refuse before anything starts.

        Raises:
            BudgetError: naming the smallest budget that would fit.
        """
        if self.fits:
            return
        phase = max(self.phases, key=lambda name: self.phases[name].planned_peak_bytes)
        peak = self.phases[phase].planned_peak_bytes
        least = math.ceil(self.minimum_budget_bytes / _MB)
        raise BudgetError(
            f"{phase} needs {format_size(peak)} at its smallest, which fits no budget below "
            f"{least} MB; the budget is {format_size(self.budget_bytes)}",
            where="plan",
            remedy=f"--budget {least}MB or more"
            + (", or --set train.batch with a smaller number" if phase == "train" else ""),
            minimum_budget_bytes=self.minimum_budget_bytes,
        )


@dataclass(frozen=True)
class Workload:
    """The sizes a prediction depends on."""

    manifest: Any  # bundle.Manifest, or its plain view
    classes: int
    pictures: int
    batch: int
    moments: str = "auto"  # auto, fp32 or int8
    engine: str = "stock"
    average: bool = False  # weight averaging keeps two more copies for a moment
    optimizer: str = "adamw"
    files: dict[str, int] = field(default_factory=dict)  # sizes of the graphs' files


def plan(
    workload: Workload,
    floor: MachineFloor,
    budget_bytes: int,
    *,
    supervisor_bytes: int = 0,
    mode: str | None = None,
    chunk: int | None = None,
    arena: bool | None = None,
    planning_bytes: int = 0,
) -> Plan:
    """Choose, for each phase, the fastest sizes whose peak fits the budget.

    Args:
        workload: model, data and recipe sizes.
        floor: of this machine.
        budget_bytes: for the whole process tree.
        supervisor_bytes: of the waiting process; 0 takes the bare supervisor's.
        mode, chunk, arena: asked for by the user; the choice is then only checked.
        planning_bytes: what deciding this took, which no budget can be below.
    """
    base = supervisor_bytes or floor.supervisor_bytes
    room = int(PLANNED * budget_bytes)
    choices = {
        "precompute": list(_precompute(workload, floor, base)),
        "train": [
            phase
            for phase in _train(workload, floor, base, mode, chunk)
            if arena in (None, phase.arena)
        ],
        "evaluate": list(_evaluate(workload, floor, base)),
    }
    phases, least = {}, {}
    for name, candidates in choices.items():
        smallest = min(candidates, key=lambda phase: phase.planned_peak_bytes)
        fitting = (phase for phase in candidates if phase.planned_peak_bytes <= room)
        phases[name] = next(fitting, smallest)
        if phases[name].max_pixels is not None:
            phases[name] = _larger_pictures(phases[name], room)
        least[name] = smallest.planned_peak_bytes
    minimum = math.ceil(max(planning_bytes, *least.values()) / PLANNED / _MB) * _MB
    return Plan(
        budget_bytes=budget_bytes,
        minimum_budget_bytes=minimum,
        fits=minimum <= budget_bytes,
        phases=phases,
        classes=workload.classes,
        pictures=workload.pictures,
        floor=floor,
        least=least,
    )


def _phase(parts: dict[str, float], **sizes: Any) -> PhasePlan:
    whole = {name: int(size) for name, size in parts.items()}
    return PhasePlan(planned_peak_bytes=sum(whole.values()), parts=whole, **sizes)


def _larger_pictures(phase: PhasePlan, room: int) -> PhasePlan:
    """What the budget leaves over lets larger pictures be decoded in full, one at a time."""
    spare = max(0, room - phase.planned_peak_bytes)
    pixels = (phase.max_pixels or 0) + int(spare / COSTS.decoded_pixel)
    return replace(phase, max_pixels=min(_EXACT_PIXELS, pixels))


# -- precompute ---------------------------------------------------------------------------------


def _precompute(workload: Workload, floor: MachineFloor, base: int) -> Iterator[PhasePlan]:
    """Fastest first: whole towers, then segment by segment with ever smaller batches."""
    for batch in (8, 4, 2, 1):
        yield _precompute_phase(workload, floor, base, batch, whole=True)
    for batch in (8, 4, 2, 1):
        yield _precompute_phase(workload, floor, base, batch, whole=False)


def _precompute_phase(
    workload: Workload, floor: MachineFloor, base: int, batch: int, *, whole: bool
) -> PhasePlan:
    manifest = workload.manifest
    pixels = 3 * manifest.preprocess.size**2 * 4
    towers = max(
        _tower_bytes(manifest.image, batch, whole, 2 * batch * pixels),
        _tower_bytes(manifest.text, batch, whole, None),
    )
    # decoding and tokenising are over before a segment opens, unless all stay open
    before = max(COSTS.decoded_picture, COSTS.tokenizer)
    work = towers + before if whole else max(towers, before)
    parts = {
        "supervisor": base,
        "floor": floor.worker_bytes + floor.pictures_bytes + COSTS.tower_code,
        "backbone": work,
        "cache": COSTS.shard_buffer,
    }
    room = int((work - towers if whole else work) / COSTS.decoded_pixel)
    # the group only costs disk: large enough that loading a segment's weights is amortised
    group = None if whole else 128
    return _phase(
        parts,
        batch=batch,
        group=group,
        whole=whole,
        max_pixels=min(_EXACT_PIXELS, max(room, _FEWEST_PIXELS)),
    )


def _tower_bytes(tower: Any, batch: int, whole: bool, pixels: float | None) -> float:
    """Weights, the copy made while they are loaded, and activations of a batch.

    Args:
        pixels: bytes of the pictures the first segment is fed; None for the text tower.
    """
    loaded, opening, running = 0.0, 0.0, 0.0
    for index, segment in enumerate(tower.segments):
        weight = float(segment.weight_bytes)
        copies = COSTS.segment_opening if index else COSTS.stem_opening
        if pixels is None and index == 0:
            # the token table is mapped and only the rows in use are read
            weight, copies = COSTS.token_table * weight, 1.0
        opening = max(opening, (copies - 1) * weight + (0 if whole else weight))
        activation = COSTS.activation * batch * segment.activation_bytes
        if index == 0:
            activation += pixels or 0
        running = max(running, activation + (0 if whole else weight))
        loaded += weight
    if not whole:
        return max(opening, running) + COSTS.segment_session
    return loaded + max(opening, running) + COSTS.segment_session * len(tower.segments)


# -- train --------------------------------------------------------------------------------------


def _train(
    workload: Workload, floor: MachineFloor, base: int, mode: str | None, chunk: int | None
) -> Iterator[PhasePlan]:
    """Fastest first; 8-bit moments only after every way with fp32 moments."""
    kinds = ("fp32", "int8") if workload.moments == "auto" else (workload.moments,)
    most = max(workload.batch, workload.classes)
    chunks = (chunk,) if chunk else tuple(size for size in _CHUNKS if size < most) or (1,)
    ways: list[tuple[str, int | None, bool]] = [
        ("fused", None, True),
        ("recompute", None, True),
        ("fused", None, False),
        ("recompute", None, False),
        *(("chunked", size, False) for size in chunks),
    ]
    if workload.engine == "ort-training":
        ways = ways[:1]
        kinds = ("fp32",)
    for moments in kinds:
        for way, size, arena in ways:
            if mode in (None, way):
                yield _train_phase(workload, floor, base, way, size, moments, arena)


def parameter_count(manifest: Any) -> int:
    """Trained numbers of the ladder."""
    return sum(math.prod(parameter.shape) for parameter in manifest.ladder.parameters)


def tap_bytes(manifest: Any, side: str) -> int:
    """fp32 bytes of one picture's or one class's taps and embedding."""
    groups = [group for group in manifest.ladder.groups if group.side == side]
    taps = sum(len(group.taps) * group.tokens * group.width for group in groups)
    return 4 * (taps + manifest.model.embedding_dim)


def _state_parts(workload: Workload, moments: str) -> dict[str, float]:
    count = parameter_count(workload.manifest)
    slots = 2 if workload.optimizer == "adamw" else 1
    each = 4.0 if moments == "fp32" else 1.0 + 4 / 256  # one fp32 scale per block of 256
    parts = {
        "parameters": 4.0 * count,
        "gradients": 4.0 * count,
        "moments": slots * each * count,
    }
    if workload.average:
        parts["average"] = 8.0 * count
    return {name: size * COSTS.state_slack for name, size in parts.items()}


def _train_phase(
    workload: Workload,
    floor: MachineFloor,
    base: int,
    mode: str,
    chunk: int | None,
    moments: str,
    arena: bool,
) -> PhasePlan:
    manifest = workload.manifest
    images = min(workload.batch, chunk or workload.batch)
    classes = min(workload.classes, chunk or workload.classes)
    width = manifest.model.embedding_dim
    image_taps, text_taps = (
        images * tap_bytes(manifest, "image"),
        classes * tap_bytes(manifest, "text"),
    )
    # one side's window at a time where chunked, both at once where not
    inputs = max(image_taps, text_taps) if mode == "chunked" else image_taps + text_taps
    # embeddings and their gradients stay whole even where taps come in windows
    embeddings = 4 * 4 * width * (workload.batch + workload.classes)
    logits = 4 * 4 * workload.batch * workload.classes
    graph_bytes, activation = graph_costs(workload, mode, images, classes)
    if mode == "recompute":
        activation *= COSTS.recompute
    if arena:
        activation = activation * COSTS.arena_share + COSTS.arena
    parts: dict[str, float] = {
        "supervisor": base,
        "floor": floor.settled_bytes + COSTS.hot_code,
        "graphs": graph_bytes,
        **_state_parts(workload, moments),
        "inputs": inputs + embeddings + logits,
        "activations": activation,
        "cache": COSTS.cache_reader + COSTS.per_picture * workload.pictures,
        "heap": COSTS.heap,
    }
    if workload.engine == "ort-training":
        parts["floor"] += floor.training_bytes
    # before the first step nothing has settled yet, but parameters are all there is
    start = base + floor.worker_bytes + parts["parameters"] + COSTS.start
    short = start - sum(parts.values())
    if short > 0:
        parts["start"] = short
    keep = 0 if mode == "chunked" else min(text_taps, _KEEP_BYTES)
    return _phase(
        parts,
        batch=workload.batch,
        chunk=chunk,
        mode=mode,
        moments=moments,
        arena=arena,
        keep_bytes=keep,
    )


def graph_costs(workload: Workload, mode: str, images: int, classes: int) -> tuple[float, float]:
    """Bytes of the graphs a mode keeps loaded, and of the activations at its peak."""
    records = workload.manifest.ladder.graphs
    used = [records[name] for name in GRAPHS[mode] if name in records]
    loaded = sum(
        COSTS.session
        + COSTS.node * record.nodes
        + COSTS.graph_file * workload.files.get(record.file, 0)
        for record in used
    )
    loaded += 2 * COSTS.session  # the optimiser's
    activations = [
        record.activation_bytes.get("fixed", 0.0)
        + record.activation_bytes.get("per_image", 0.0) * images
        + record.activation_bytes.get("per_class", 0.0) * classes
        for record in used
    ]
    return loaded, max(activations, default=0.0)


# which graphs of the manifest a mode keeps open
GRAPHS = {
    "fused": ("fused",),
    "recompute": ("recompute",),
    "chunked": ("encode_image", "encode_text", "loss", "pull_image", "pull_text"),
    "evaluate": ("encode_image", "encode_text"),
}


# -- evaluate -----------------------------------------------------------------------------------


def _evaluate(workload: Workload, floor: MachineFloor, base: int) -> Iterator[PhasePlan]:
    manifest = workload.manifest
    count = parameter_count(manifest)
    for chunk in (64, 32, 16, 8, 4, 2, 1):
        graphs, activation = graph_costs(workload, "evaluate", chunk, chunk)
        parts = {
            "supervisor": base,
            "floor": floor.worker_bytes,  # too short a phase to count on settling
            "graphs": graphs,
            "parameters": 8.0 * count,
            "inputs": chunk * max(tap_bytes(manifest, "image"), tap_bytes(manifest, "text"))
            + 8 * manifest.model.embedding_dim * workload.classes,
            "activations": activation,
            "cache": COSTS.cache_reader + COSTS.per_picture * workload.pictures,
            "heap": COSTS.heap,
        }
        yield _phase(parts, chunk=chunk)
