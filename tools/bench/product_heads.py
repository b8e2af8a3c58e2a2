"""Heads as `edgeladder train` fits them, on a benchmark's pictures in memory."""

from __future__ import annotations

import numpy as np

from edgeladder.budget.policy import wanted_head_pictures
from edgeladder.core.config import HeadConfig
from edgeladder.runtime.heads.closed_form import Head, Kind, fit_head
from edgeladder.runtime.heads.fit_head import fixed_head_weight, head_sample, ladder_weight
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.linear_probe import beside_head
from edgeladder.runtime.heads.refit import refit
from edgeladder.runtime.logits import ClassLogits
from tools.bench.task import Activations, Pool, Task

Array = np.ndarray


def inputs_of(pool: Pool, pictures: Activations) -> HeadInputs:
    """What a head of the pool's classes reads of any pictures."""
    formula = ClassLogits.of(pool.bundle.manifest.model)
    zero_shot = formula.similarity(pictures.embedding, pool.text.embedding)
    return HeadInputs(pictures.features(), pictures.labels, zero_shot, bool(pictures.extra))


def support_inputs(task: Task) -> HeadInputs:
    """The same of a task's support set."""
    return inputs_of(task.pool, task.support)


def sample_of(kind: Kind, inputs: HeadInputs, labelled: int) -> HeadInputs:
    """The pictures that give settings and support: as many as `evaluate` has room for."""
    others = len(inputs.labels) - labelled
    most = wanted_head_pictures(kind, labelled, inputs.zero_shot.shape[1], others)
    return inputs.rows(head_sample(inputs.labels, labelled, most, 0))


def fitted(kind: Kind, inputs: HeadInputs, labelled: int) -> Head:
    """The closed-form head: on a sample, and beyond it refitted on all.

    Args:
        kind: of the head.
        inputs: of all training pictures, those with pseudo-labels last.
        labelled: how many of them have labels of their own.
    """
    sample = sample_of(kind, inputs, labelled)
    told = sample.features, sample.labels, sample.zero_shot
    head = fit_head(kind, *told, projected=inputs.projected)
    if len(sample.labels) == len(inputs.labels):
        return head
    return refit(head, told, [(inputs.features, inputs.labels, inputs.zero_shot)])


def joined(config: HeadConfig, inputs: HeadInputs) -> tuple[Head, float, float]:
    """What `evaluate` puts beside the ladder, with its weight and the ladder's; no folds."""
    assert config.kind != "none"
    count, classes = len(inputs.labels), inputs.zero_shot.shape[1]
    head = fitted(config.kind, inputs, count)
    sample = sample_of(config.kind, inputs, count)
    if config.has_linear:
        head = beside_head(head, sample, count)
    weight = fixed_head_weight(config.weight, config.full_at, count, classes)
    own = 1.0 if config.full_at is None else ladder_weight(sample.zero_shot, sample.labels)
    return head, weight, own
