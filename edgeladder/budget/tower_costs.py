"""What precompute needs: whole towers on one heap, or a segment at a time with ever less.

A segment's peak is the larger of opening it (its weights, and the copy made of the largest while
it is packed) and running a batch through it (weights and activations). Held whole, weights add up
and all segments share one heap of activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from edgeladder.budget.costs import COSTS
from edgeladder.budget.policy import EXACT_PIXELS, FEWEST_PIXELS, GROUP, TOWER_BATCHES
from edgeladder.budget.workload import Workload, phase_of
from edgeladder.core.manifest import rows_at_once
from edgeladder.core.plan import MachineBaseline, PhasePlan


def precompute_phases(
    workload: Workload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """Fastest first: whole towers, then segment by segment with ever smaller batches."""
    for whole in (True, False):
        for batch in TOWER_BATCHES:
            yield _phase(workload, baseline, base, batch, whole=whole)


def larger_pictures(phase: PhasePlan, room: int) -> PhasePlan:
    """What the budget leaves over lets larger pictures be decoded in full, one at a time."""
    spare = max(0, room - phase.planned_peak_bytes)
    sizes = picture_sizes((phase.picture_bytes or 0) + spare)
    return replace(phase, max_pixels=sizes["max_pixels"], picture_bytes=sizes["picture_bytes"])


def picture_sizes(room: float) -> dict[str, int]:
    """The limits of one picture's decoding in so many bytes: what its header is held against."""
    least = max(room, FEWEST_PIXELS * COSTS.decoded_pixel)
    pixels = int(least / COSTS.decoded_pixel)
    return {"max_pixels": min(EXACT_PIXELS, pixels), "picture_bytes": int(least)}


def _phase(
    workload: Workload, baseline: MachineBaseline, base: int, batch: int, *, whole: bool
) -> PhasePlan:
    manifest = workload.manifest
    pixels = 3 * manifest.preprocess.size**2 * 4
    image = tower_bytes(manifest.image, batch, whole, 2 * batch * pixels)
    text = tower_bytes(manifest.text, batch, whole, None)
    # decoding and tokenising are over before a segment opens, unless all stay open
    before = max(COSTS.decoded_picture, COSTS.tokenizer)
    work = max(image + COSTS.decoded_picture, text + COSTS.tokenizer)
    if not whole:
        work = max(image, text, before)
    parts = {
        "supervisor": base,
        "baseline": baseline.worker_bytes + baseline.pictures_bytes + COSTS.tower_code,
        "backbone": work,
        "cache": COSTS.shard_buffer + _keys_bytes(workload),
    }
    return phase_of(
        parts,
        batch=batch,
        group=None if whole else GROUP,
        whole=whole,
        **picture_sizes(work - image if whole else work),
        disk_bytes=GROUP * (pixels // 4 + (0 if whole else hidden_bytes(manifest))),
    )


def _keys_bytes(workload: Workload) -> float:
    """Keys of all samples, which the run's selection is made of at the end."""
    samples = workload.pictures * (workload.views + 1) + workload.unlabelled
    return float(COSTS.sample_key * samples)


def hidden_bytes(manifest: Any) -> int:
    """Disk of one sample between segments: what goes in and what comes out, as it is."""

    def most(tower: Any) -> int:
        sizes = [
            sum(4 * _count(item.shape) for item in [*segment.inputs, *segment.outputs])
            for segment in tower.segments[1:]
        ]
        taps = sum(4 * int(tap.tokens * tap.width) for tap in tower.taps)
        return max(sizes, default=0) + taps

    return max(most(manifest.image), most(manifest.text))


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _one_sample(segment: Any, row: int) -> int:
    """Activations of one sample: the export's count has weights among them that it widened."""
    widened = segment.opened_bytes if segment.opened_bytes > segment.weight_bytes else 0
    return max(row, int(segment.activation_bytes) - int(widened))


def tower_bytes(tower: Any, batch: int, whole: bool, pixels: float | None) -> float:
    """Weights, the copy made while they are loaded, and activations of a batch.

    Hidden states that are maps (channels, height, width) are a convolution's, whose activation
    function onnxruntime computes in place: the export's count of the highest moment holds both. In
    a whole tower the heap that its segments share takes part of that back, since they need blocks
    of other sizes.

    Args:
        pixels: bytes of the pictures the first segment is fed; None for the text tower.
    """
    loaded, opening, running = 0.0, 0.0, 0.0
    for index, segment in enumerate(tower.segments):
        weight = float(segment.opened_bytes)
        copies = COSTS.segment_opening if index else COSTS.stem_opening
        if index and segment.gives_maps:
            copies = COSTS.convolution_opening
        if pixels is None and index == 0:
            # the token table is mapped and only the rows in use are read
            weight, copies = COSTS.token_table * weight, 1.0
        opening = max(opening, (copies - 1) * weight + (0 if whole else weight))
        # a second row that a single sample is given for its embedding: int8 weights, widened while
        # the segment runs, are most of its measured bytes, and they are there once
        further = rows_at_once(tower, segment, batch) - batch
        row = 4 * sum(_count(item.shape) for item in [*segment.inputs, *segment.outputs])
        factor = COSTS.int8_activation if segment.computes_int8 else COSTS.activation
        if segment.convolves:
            factor = COSTS.whole_map_activation if whole else COSTS.map_activation
        activation = factor * (batch * _one_sample(segment, row) + further * row)
        if index == 0:
            activation += pixels or 0
        running = max(running, activation + (0 if whole else weight))
        loaded += weight
    if not whole:
        return max(opening, running) + COSTS.segment_session
    sessions = COSTS.segment_session * len(tower.segments)
    return loaded + max(opening, running) + sessions
