"""What using a trained run needs: predict, evaluate on pictures, deploy, serve.

peak = supervisor + baseline + adapter + ladder's graphs + class embeddings (of any number of names:
       their prompts pass the text tower in groups of whole classes)
     + the larger of the text tower, always segment by segment, and the image tower with pictures

`deploy` asks the file it wrote about a few pictures before it appears under its name, and a file is
opened whole: it holds the model's bytes, whatever the towers were run in.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeladder.budget.costs import COSTS, DEPLOYED
from edgeladder.budget.policy import (
    CLASS_CHUNK,
    PREDICT_BATCH,
    PREDICT_GROUP,
    PREDICT_TEXT_GROUP,
    PROBES,
    TOWER_BATCHES,
)
from edgeladder.budget.step_costs import activation_bytes, graph_bytes
from edgeladder.budget.tower_costs import hidden_bytes, picture_sizes, tower_bytes
from edgeladder.budget.workload import InferenceWorkload, phase_of, tap_bytes, value_count
from edgeladder.core.inference import WHOLE_SIDE
from edgeladder.core.plan import MachineBaseline, PhasePlan

_GRAPHS = ("encode_image", "encode_text")
_CONFUSION_BYTES = 48  # a count: int64, in lists of the worker and of who waits, in JSON between
_SINK_SAMPLES = 16  # whose taps a streamed tower hands on at a time
_BATCHES = tuple(size for size in TOWER_BATCHES if size <= PREDICT_BATCH)


def predict_phases(
    workload: InferenceWorkload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """Fastest first: the image tower whole, then segment by segment."""
    for whole in (True, False):
        for batch in _BATCHES:
            yield _phase(workload, baseline, base, batch, whole=whole)


def judge_phases(
    workload: InferenceWorkload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """As predict, with who was taken for whom: every class against every other."""
    for phase in predict_phases(workload, baseline, base):
        parts: dict[str, float] = dict(phase.parts)
        parts["confusion"] = _CONFUSION_BYTES * float(workload.classes) ** 2
        yield phase_of(parts, **phase.sizes(), disk_bytes=phase.disk_bytes)


def deploy_phases(
    workload: InferenceWorkload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """As predict, and never less than the finished file takes where it is asked."""
    for phase in predict_phases(workload, baseline, base):
        parts: dict[str, float] = dict(phase.parts)
        asking = _file_bytes(workload)
        parts["file"] = max(0.0, asking - parts["towers"])
        yield phase_of(parts, **phase.sizes(), disk_bytes=phase.disk_bytes)


def serve_phases(
    workload: InferenceWorkload, baseline: MachineBaseline, base: int
) -> Iterator[PhasePlan]:
    """As predict, one picture at a time."""
    for whole in (True, False):
        yield _phase(workload, baseline, base, 1, whole=whole)


def _phase(
    workload: InferenceWorkload, baseline: MachineBaseline, base: int, batch: int, *, whole: bool
) -> PhasePlan:
    manifest = workload.manifest
    square = 3 * manifest.preprocess.size**2
    held = batch if whole else PREDICT_GROUP
    image = tower_bytes(manifest.image, batch, whole, 2 * batch * 4 * square) + held * square
    text = max(tower_bytes(manifest.text, batch, False, None), COSTS.tokenizer)
    # decoding is over before a segment opens, unless all stay open
    decoding = COSTS.decoded_picture
    towers = max(image + decoding if whole else max(image, decoding), text)
    handed_on = batch if whole else _SINK_SAMPLES
    parts: dict[str, float] = {
        "supervisor": base,
        "baseline": baseline.worker_bytes + baseline.pictures_bytes + COSTS.tower_code,
        "adapter": 2 * 4.0 * value_count(manifest) + COSTS.loaded_head * workload.head_bytes,
        "graphs": graph_bytes(workload, _GRAPHS),
        "classes": _class_bytes(workload),
        "pictures": 2 * handed_on * tap_bytes(manifest, "image")
        + activation_bytes(workload, _GRAPHS[:1], handed_on, 0),
        "towers": towers,
    }
    return phase_of(
        parts,
        batch=batch,
        chunk=min(CLASS_CHUNK, workload.classes),
        group=None if whole else PREDICT_GROUP,
        whole=whole,
        **picture_sizes(decoding if whole else towers),
        disk_bytes=0 if whole else PREDICT_GROUP * hidden_bytes(manifest),
    )


def _class_bytes(workload: InferenceWorkload) -> float:
    """A group's taps as the text tower leaves them, their means, and what is kept of every class.

    Kept are both embeddings, once in parts while they are gathered, and every prompt's tokens.
    """
    manifest = workload.manifest
    taps = tap_bytes(manifest, "text")
    prompts = min(workload.prompts, max(PREDICT_TEXT_GROUP, workload.most_prompts))
    classes = min(workload.classes, prompts)
    embeddings = 2 * 2 * 4 * workload.classes * int(manifest.model.embedding_dim)
    tokens = 8 * workload.prompts * int(manifest.tokenizer.context_length)
    chunk = min(CLASS_CHUNK, workload.classes)
    encoding = activation_bytes(workload, _GRAPHS[1:], 0, chunk)
    return 2.0 * taps * (prompts + classes) + embeddings + tokens + encoding


def _file_bytes(workload: InferenceWorkload) -> float:
    """The finished file, opened and asked about the probes."""
    manifest = workload.manifest
    tower = float(sum(segment.weight_bytes for segment in manifest.image.segments))
    # products of an int8 tower are written as they are, whatever is asked for the others
    tower *= DEPLOYED["fp32" if manifest.image.int8 is not None else workload.dtype]
    weights = 4.0 * value_count(manifest) + 2.0 * workload.head_bytes
    weights += 2 * 4.0 * workload.classes * int(manifest.model.embedding_dim)
    largest = float(max(segment.activation_bytes for segment in manifest.image.segments))
    square = float(3 * manifest.preprocess.size**2)
    asking = COSTS.activation * PROBES * largest + 2 * 4 * PROBES * square
    if workload.resize:
        asking += COSTS.resized_pixel * WHOLE_SIDE**2
    nodes = float(COSTS.segment_session * len(manifest.image.segments))
    return tower + weights * DEPLOYED[workload.dtype] + asking + nodes
