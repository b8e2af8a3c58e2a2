"""A linear map of the last two taps to classes, trained by steps with mixup, to join another head.

Rows are unit vectors of each tap less their mean, brought to a mean square length of one and side
by side. Cross-entropy of pairs mixed with weights from a uniform distribution (mixup, Zhang et al.,
arXiv:1710.09412, alpha 1), AdamW (arXiv:1711.05101), cosine schedule, weights averaged. It errs
otherwise than what is closed-form, and is worth about a point beside it where pictures are few.

A trained map is a rule `f W + b` like a discriminant, and is kept as one without zero-shot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeladder.runtime.heads.blend import NOISE_NATS, explained_nats, fit_weights
from edgeladder.runtime.heads.closed_form import Blend, Gda, Head
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.kernel import Kernel, normalise, shot_folds

Array = np.ndarray

_STEPS, _BATCH, _FEWEST = 200, 128, 32
_RATE, _DECAY = 3e-3, 1e-2
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_AVERAGE = 0.98  # decay of the averaged weights, reached after some hundred steps
_SCALE = 4.0  # of the rows: what lets 200 steps of this rate fit them
_FOLDS = 4  # left out in turn, at most
# of its logits' spread, in that of the head beside it: at one picture of a class, and at more
_FIRST_SHARE, _SHARE = 0.25, 0.4
_MOST_TIMES, _DILUTION = 2.0, 5.0  # of that share, by what zero-shot explains of the labels
_FULL_TO = 8  # pictures of a class; beyond, it counts less in proportion
_MOST_SHARE = 0.8  # that held-out logits can ask for
LADDER_SHARE = 2.0  # the same beside a ladder alone


def fit_linear(sample: HeadInputs, *, seed: int = 0) -> Gda:
    """Train the map on labelled pictures.

    Args:
        sample: features per tap, labels; where there are two of every class, folds of them are
            left out in turn for `held_out`.
        seed: of batches and mixing weights.
    """
    reads = _reads(sample)
    rule = _trained(sample, reads, seed)
    shots = int(np.bincount(sample.labels, minlength=sample.zero_shot.shape[1]).min())
    if shots < 2:
        return rule
    folds = shot_folds(sample.labels) % min(_FOLDS, shots)
    held_out = np.empty(sample.zero_shot.shape)
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        rest = _trained(sample.rows(np.flatnonzero(~out)), reads, seed)
        left = sample.rows(np.flatnonzero(out))
        held_out[out] = rest.logits(left.features, left.zero_shot)
    return replace(rule, held_out=held_out)


def beside_head(head: Head, sample: HeadInputs, pictures: int, *, seed: int = 0) -> Blend:
    """The head with a linear map beside it: logits `head + share * map`, in the head's own units.

    Args:
        head: fitted on the sample, or with its settings.
        sample: what the map is trained on.
        pictures: with a label or a pseudo-label, of which the sample may be a part.
    """
    rule = fit_linear(sample, seed=seed)
    unit = _unit(head, rule, sample)
    share = _share(head, rule, sample, pictures, unit)
    parts = head.heads if isinstance(head, Blend) else [head]
    count = len(parts) + 1  # a blend is the mean of its heads
    joined = [scaled(part, count / len(parts)) for part in parts]
    return Blend([*joined, scaled(rule, count * share * unit)])


def _unit(head: Head, rule: Gda, sample: HeadInputs) -> float:
    """The map's weight at which its logits differ as much between classes as the head's.

    Of held-out logits where there are any: on its own pictures a head may say ten times as much.
    """
    if head.held_out is not None and rule.held_out is not None:
        return _spread(head.held_out) / max(_spread(rule.held_out), 1e-12)
    first, second = (_spread(one.logits(sample.features, sample.zero_shot)) for one in (head, rule))
    return first / max(second, 1e-12)


def _share(head: Head, rule: Gda, sample: HeadInputs, pictures: int, unit: float) -> float:
    """The map's share: by the number of pictures, and by what held-out logits of both say of it.

    Half each, where there are held-out ones: a best weight of few pictures says little by itself.
    The map knows nothing of zero-shot, which the head counts: where zero-shot explains a share e of
    the labels, it would dilute that, and the first half is 2 exp(-5 e) times as large.

    Args:
        head: beside which the map counts.
        rule: the map.
        sample: that both were fitted on.
        pictures: in all that train.
        unit: the map's weight at a share of one.
    """
    shots = pictures / sample.zero_shot.shape[1]
    share: float = _FIRST_SHARE if shots < 2 else _SHARE
    share *= _MOST_TIMES * np.exp(-_DILUTION * _explained_share(sample))
    share *= min(1.0, _FULL_TO / shots, len(sample.labels) / pictures)
    if head.held_out is None or rule.held_out is None:
        return share
    (own, beside), _ = fit_weights([head.held_out, rule.held_out], sample.labels)
    asked = float(beside / max(own, 1e-9)) / unit
    return float(share + min(asked, _MOST_SHARE)) / 2


def _explained_share(sample: HeadInputs) -> float:
    """Share of what there is to know of the labels that zero-shot explains, less what is chance."""
    count, classes = sample.zero_shot.shape
    explained = explained_nats(sample.zero_shot, sample.labels) - NOISE_NATS
    return float(max(0.0, explained) / (count * np.log(max(classes, 2))))


def scaled(part: Gda | Kernel, factor: float) -> Gda | Kernel:
    """A head whose logits are `factor` times as large."""
    held_out = None if part.held_out is None else factor * part.held_out
    if isinstance(part, Gda):
        weight, prior = factor * part.weight, factor * part.prior
        return replace(part, weight=weight, prior=prior, held_out=held_out)
    choice = part.choice
    choice = replace(choice, temperature=factor * choice.temperature, prior=factor * choice.prior)
    return replace(part, choice=choice, held_out=held_out)


def weight_beside_ladder(ladder: Array, rule: Gda, sample: HeadInputs) -> float:
    """The map's weight beside a ladder alone, whose logits (n, C) of the sample these are."""
    own = _spread(rule.logits(sample.features, sample.zero_shot))
    return LADDER_SHARE * _spread(ladder) / max(own, 1e-12)


def _reads(sample: HeadInputs) -> tuple[int, ...]:
    """The last two taps, or the one there is."""
    after = 2 if sample.projected else 1  # what follows the taps
    taps = len(sample.features) - after
    return tuple(range(-after - min(2, taps), -after))


def _spread(logits: Array) -> float:
    """Standard deviation between classes."""
    return float((logits - logits.mean(axis=1, keepdims=True)).std())


def _trained(sample: HeadInputs, reads: Sequence[int], seed: int) -> Gda:
    """The map, in terms of features at unit length."""
    centres, lengths, parts = [], [], []
    for place in reads:
        rows = normalise(sample.features[place])
        centre = rows.mean(axis=0)
        rows -= centre
        length = float(np.sqrt(max(np.einsum("nd,nd->", rows, rows) / len(rows), 1e-12)))
        centres.append(centre)
        lengths.append(np.full(len(centre), _SCALE / length))
        parts.append((rows * (_SCALE / length)).astype(np.float32))
    classes = sample.zero_shot.shape[1]
    weights, bias = _steps(np.concatenate(parts, axis=1), sample.labels, classes, seed)
    matrix = np.concatenate(lengths)[:, None] * weights
    return Gda(matrix, bias - np.concatenate(centres) @ matrix, 1.0, 0.0, tuple(reads))


def _steps(rows: Array, labels: Array, classes: int, seed: int) -> tuple[Array, Array]:
    """Averaged weights (D, C) and bias (C,) of rows (n, D), in float64."""
    generator = np.random.default_rng(seed)
    targets = np.eye(classes, dtype=np.float32)[labels]
    size = max(min(_BATCH, len(rows)), _FEWEST)
    values = [np.zeros((rows.shape[1], classes), np.float32), np.zeros(classes, np.float32)]
    first, second, average = ([np.zeros_like(value) for value in values] for _ in range(3))
    for step in range(_STEPS):
        one, other = generator.integers(0, len(rows), (2, size))
        share = generator.random((size, 1), dtype=np.float32)
        mixed = share * rows[one] + (1 - share) * rows[other]
        wanted = share * targets[one] + (1 - share) * targets[other]
        slope = _softmax(mixed @ values[0] + values[1])
        slope -= wanted
        slope /= size
        rate = 0.5 * _RATE * (1 + np.cos(np.pi * step / _STEPS))
        decay = min(_AVERAGE, (1 + step) / (10 + step))
        for k, gradient in enumerate((mixed.T @ slope, slope.sum(axis=0))):
            first[k] += (1 - _BETAS[0]) * (gradient - first[k])
            second[k] += (1 - _BETAS[1]) * (gradient * gradient - second[k])
            values[k] *= 1 - rate * _DECAY
            corrected = first[k] * (rate / (1 - _BETAS[0] ** (step + 1)))
            values[k] -= corrected / (np.sqrt(second[k] / (1 - _BETAS[1] ** (step + 1))) + _EPSILON)
            average[k] += (1 - decay) * (values[k] - average[k])
    return average[0].astype(np.float64), average[1].astype(np.float64)


def _softmax(logits: Array) -> Array:
    """In place, float32."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits
