"""What finishing a run from its cache needs, before it is judged: head, temperature, known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeladder.budget.policy import (
    FEWEST_HEAD_PICTURES,
    labelled_at_once,
    self_training_pictures,
)
from edgeladder.budget.workload import Workload

_WINDOW = 64  # pictures read at a time
_LINEAR_BATCH = 128  # pictures of a step of a linear map
_KNOWN_BLOCK = 128  # known pictures compared with all others at a time
_AT_ONCE = 0.85
_CODE = 29_000_000  # of numpy and its linear algebra, float32 too, and its threads' buffers
_COMPARING_CODE = 9_000_000  # the same of comparing known pictures, where no head was fitted
_FULL = ("kernel", "blend")  # these read every tap; gda and proker the final embedding alone


def head_pictures(workload: Workload) -> list[int]:
    """Training pictures that the head may be fitted on, most first; a kernel's can be fewer.

    At least two of every class: with one, leaving out says nothing. [0] where there is no head.
    """
    if workload.head == "none" and not workload.linear:
        return [0]
    most = workload.head_pictures
    if workload.head == "gda":
        return [most]
    return [
        most,
        *(
            n
            for n in (most // 2, most // 4, most // 8)
            if n >= FEWEST_HEAD_PICTURES * workload.classes
        ),
    ]


def head_bytes(workload: Workload, pictures: int) -> tuple[float, float]:
    """Bytes while a head is fitted on `pictures`, and while it is used.

    Fitting holds n rows of all features in fp16 and float32, and in turn three copies of the widest
    feature; a matrix of distances (n, n) per feature in float32 and some three in float64 while
    settings are judged; what a blend's discriminant reads, almost three times, and some five
    matrices (n, n) of its eigendecomposition. Using it holds the rows in float32 and, as they are
    stored, in fp16. Coefficients as in `costs.py`, from nano with 160, 300 and 600 pictures.

    A linear map holds what it reads in float32, twice while folds are left out, one tap in float64,
    and its weights six times: with gradients, moments and averages.
    """
    if not pictures:
        return 0.0, 0.0
    widths = _widths(workload)
    final, projected = widths[0], bool(workload.manifest.ladder.image_inputs)
    rows, widest = sum(widths) * pictures, max(widths) * pictures
    square = 8.0 * pictures**2
    used = 6.0 * rows
    if workload.linear:
        taps = widths[1:-1] if projected else widths[1:]
        read = sum(taps[-2:])
        steps = 8.0 * read * pictures + 24.0 * max(taps[-2:]) * pictures
        steps += read * (24.0 * workload.classes + 12.0 * _LINEAR_BATCH)
        used = 0.0 if workload.head == "none" else used
        used += 12.0 * read * workload.classes
    else:
        steps = 0.0
    window = 10.0 * sum(widths) * min(pictures, _WINDOW)
    if workload.head == "none":
        return _AT_ONCE * (6.0 * rows + steps) + window + _CODE, used
    if workload.head == "gda" and not workload.linear:
        return 24.0 * rows, 0.0
    stages = [steps, 24.0 * widest, square * (len(widths) / 2 + 3)]
    if workload.head == "blend":
        # the last tap, and the embedding before the projection or, without one, the final one
        read = widths[-2] + widths[-1] if projected else widths[-1] + final
        stages.append(22.0 * pictures * read + 5 * square)
    fitting = 6.0 * rows + max(stages)
    return _AT_ONCE * fitting + window + _CODE, used


def pseudo_label_bytes(workload: Workload, pictures: int) -> float:
    """Bytes while a blend gives labels to others, `runtime/heads/pseudo_labels.py`.

    It is fitted on labelled pictures first. Then labelled and unlabelled ones, `pictures` of them,
    are there in fp16, and once more together; what the discriminant reads of them in float64, twice
    for a moment; then the widest tap in float64, three times, beside eigenvectors, gram and three
    matrices of its distances. From nano with 150 to 974 pictures.

    The head of a further pass is fitted beside the first one and the labelled pictures.
    """
    blend = replace(workload, head="blend")
    widths = _widths(blend)
    read = widths[-2] + widths[-1] if workload.manifest.ladder.image_inputs else widths[-1]
    labelled = min(workload.labelled, pictures)
    fitting, judging = head_bytes(blend, labelled)
    if workload.self_training_passes > 1:
        asked = self_training_pictures(workload.labelled, workload.unlabelled, workload.classes)
        anew, used = head_bytes(replace(blend, linear=False), min(asked, pictures))
        fitting = max(fitting, judging + 2.0 * sum(widths) * labelled + anew)
        judging += used
    known = labelled_at_once(workload.labelled, pictures, workload.classes)
    portions = -(-workload.unlabelled // max(1, pictures - known))
    together = known - (-workload.unlabelled // max(1, portions))  # they are of one size
    inputs = (4.0 * sum(widths) + 48.0 * workload.classes) * together
    first = 16.0 * (read + widths[0]) * together + 24.0 * together**2
    second = 24.0 * max(widths) * together + 44.0 * together**2
    return max(fitting, judging + inputs + max(first, second) + _CODE)


def answer_bytes(workload: Workload, pictures: int) -> tuple[float, float]:
    """Bytes while temperature and known pictures are fitted, and of what is kept until it is saved.

    Held-out logits of the head's pictures are there in float64, three times more while they are
    divided. Known pictures' rows are kept in fp16; all features of a window are there while they
    are gathered, and then rows in float32 and cosines of a block with all others.
    """
    held = 32.0 * pictures * workload.classes
    count = workload.known_pictures
    if not count:
        return held, 0.0
    manifest: Any = workload.manifest
    widths = _widths(workload, every=True)
    # as `runtime.known` reads them: before the projection, else the last tap and the embedding
    width = widths[-1] if manifest.ladder.image_inputs else widths[-1] + widths[0]
    kept = 2.0 * count * width
    gathering = 10.0 * sum(widths) * min(count, _WINDOW)
    comparing = 12.0 * _KNOWN_BLOCK * width + 8.0 * _KNOWN_BLOCK * count
    stays = kept if workload.head_pictures and workload.head != "none" else kept + _COMPARING_CODE
    return max(held, kept + max(gathering, comparing)), stays


def _widths(workload: Workload, *, every: bool = False) -> list[int]:
    """Numbers per picture of each feature that the head reads, or of `every` one.

    The final embedding comes first, the others as `logits.Activations.features` gives them.
    """
    manifest: Any = workload.manifest
    widths = [int(manifest.model.embedding_dim)]
    if every or workload.linear or workload.head in _FULL:
        ladder = manifest.ladder
        for group in ladder.groups:
            if group.side == "image":
                widths += [group.tokens * group.width] * len(group.taps)
        if ladder.image_inputs:  # the embedding before CLIP's projection, which `project` maps
            widths += [r.shape[0] for r in ladder.parameters if r.name == "project"]
    return widths
