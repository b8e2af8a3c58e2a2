"""The sizes a prediction depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from edgeladder.core.plan import PhasePlan
from edgeladder.core.provider import ProviderChoice


@dataclass(frozen=True)
class Workload:
    """What is to be trained: model, data and recipe sizes."""

    manifest: Any  # bundle.Manifest, or its plain view
    classes: int
    pictures: int
    batch: int
    views: int = 0  # augmented ones of each training picture
    moments: str = "auto"  # auto, fp32 or int8
    engine: str = "stock"
    average: bool = False  # weight averaging keeps two more copies for a moment
    optimizer: str = "adamw"
    files: dict[str, int] = field(default_factory=dict)  # sizes of the graphs' files
    head: str = "none"  # kind of closed-form head that is fitted before the evaluation
    head_pictures: int = 0  # training pictures that it is fitted on, where there is room
    linear: bool = False  # whether a linear map is trained beside the head, or without one
    labelled: int = 0  # pictures with a label that train
    unlabelled: int = 0  # pictures that the head gives labels to before the ladder is trained
    pseudo_labelled: int = 0  # pictures, labelled or not, that are looked at together for it
    self_training_passes: int = 1  # over the unlabelled pictures, a head fitted before each
    known_pictures: int = 0  # whose features an adapter keeps to tell a picture of no class
    provider: ProviderChoice = ProviderChoice()  # of the image tower


@dataclass(frozen=True)
class InferenceWorkload:
    """What is to be predicted or deployed: model and adapter sizes."""

    manifest: Any  # bundle.Manifest, or its plain view
    classes: int
    prompts: int  # of all classes, aliases and templates: each passes through the text tower
    most_prompts: int = 1  # of one class
    head_bytes: int = 0  # of arrays of head and known pictures as the adapter stores them
    files: dict[str, int] = field(default_factory=dict)  # sizes of the graphs' files
    dtype: str = "fp32"  # deploy: of the weights in the file
    resize: bool = False  # deploy: the file resizes whole pictures
    pictures: int = 0  # check, suggest: all that are looked through
    feature_width: int = 0  # of each one as they are compared
    run: bool = False  # suggest: whether a run is asked how sure it is
    provider: ProviderChoice = ProviderChoice()  # of the image tower


@dataclass(frozen=True)
class Asked:
    """How a step is to be computed, where the user says so; None leaves it to the plan."""

    mode: str | None = None
    chunk: int | None = None
    arena: bool | None = None
    hold: bool | None = None


def phase_of(parts: dict[str, float], **sizes: Any) -> PhasePlan:
    """A phase whose peak is the sum of its parts."""
    whole = {name: int(size) for name, size in parts.items()}
    return PhasePlan(planned_peak_bytes=sum(whole.values()), parts=whole, **sizes)


def parameter_count(manifest: Any) -> int:
    """Trained numbers of the ladder."""
    return sum(int(math.prod(record.shape)) for record in manifest.ladder.parameters)


def value_count(manifest: Any) -> int:
    """Numbers of the ladder, trained or not: with masks, codebooks and frozen copies."""
    held = sum(int(math.prod(record.shape)) for record in manifest.ladder.buffers)
    return parameter_count(manifest) + held


def tap_bytes(manifest: Any, side: str) -> int:
    """fp32 bytes of one picture's or one class's taps and embedding."""
    groups = [group for group in manifest.ladder.groups if group.side == side]
    taps = sum(len(group.taps) * group.tokens * group.width for group in groups)
    return 4 * int(taps + manifest.model.embedding_dim)
