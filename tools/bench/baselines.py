"""The heads a ladder must beat, on the same cached features, in plain numpy.

Linear probe, LP++, Tip-Adapter-F, TaskRes, CLAP and ProLIP, each with one fixed setting from its
paper, or with a strength chosen on the support set by leaving out one shot at a time. None of them
sees a validation or test picture; none picks an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeladder.runtime.heads.blend import log_loss
from edgeladder.runtime.heads.kernel import shot_folds
from edgeladder.runtime.logits import softmax

Array = np.ndarray
Loss = Callable[[dict[str, Array]], dict[str, Array]]

MOST_FOLDS = 4  # k-fold: more cost time and change little


@dataclass(frozen=True)
class Support:
    """What a head may learn from."""

    embedding: Array  # (n, D) at unit length
    labels: Array  # (n,)
    text: Array  # (C, D) at unit length
    scale: float  # CLIP's logit scale
    shots: int
    pre: Array | None = None  # (n, W) before the projection, over the embedding's norm

    def part(self, rows: Array) -> Support:
        """The same with fewer pictures."""
        pre = None if self.pre is None else self.pre[rows]
        return Support(
            self.embedding[rows], self.labels[rows], self.text, self.scale, self.shots, pre
        )

    @property
    def onehot(self) -> Array:
        """(n, C)."""
        onehot: Array = np.eye(len(self.text), dtype=np.float32)[self.labels]
        return onehot


Predictor = Callable[[Array, "Array | None"], Array]  # embeddings, pre -> logits
Method = Callable[[Support], Predictor]


def adam(
    parameters: dict[str, Array],
    gradients: Loss,
    *,
    steps: int,
    rate: float,
    decay: float = 0.0,
) -> dict[str, Array]:
    """Full-batch AdamW with a cosine schedule (decoupled decay, arXiv:1711.05101)."""
    first = {name: np.zeros_like(value) for name, value in parameters.items()}
    second = {name: np.zeros_like(value) for name, value in parameters.items()}
    for step in range(steps):
        now = 0.5 * rate * (1 + np.cos(np.pi * step / steps))
        for name, slope in gradients(parameters).items():
            first[name] += 0.1 * (slope - first[name])
            second[name] += 0.001 * (slope * slope - second[name])
            mean = first[name] / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8
            parameters[name] = parameters[name] * (1 - now * decay) - now * mean / spread
    return parameters


def by_folds(support: Support, settings: list[float], fit: Callable[..., Predictor]) -> float:
    """The setting with the least held-out log-loss, one shot of every class left out at a time."""
    if support.shots < 2:
        return settings[len(settings) // 2]  # nothing can be left out: the middle one
    folds = shot_folds(support.labels) % MOST_FOLDS
    losses = []
    for setting in settings:
        total = 0.0
        for fold in np.unique(folds):
            out = np.flatnonzero(folds == fold)
            predictor = fit(support.part(np.flatnonzero(folds != fold)), setting)
            pre = None if support.pre is None else support.pre[out]
            logits = predictor(support.embedding[out], pre)
            total += len(out) * log_loss(logits, support.labels[out])
        losses.append(total)
    return settings[int(np.argmin(losses))]


def zero_shot(support: Support) -> Predictor:
    """CLIP as it is."""
    return lambda embedding, pre: support.scale * embedding @ support.text.T


def linear_probe(support: Support) -> Predictor:
    """Logistic regression on the embeddings, no text; its L2 strength by k-fold."""

    def fit(part: Support, strength: float) -> Predictor:
        scale = 16.0  # conditioning only: unit rows would need very large weights
        rows = scale * part.embedding

        def slopes(p: dict[str, Array]) -> dict[str, Array]:
            error = (softmax(rows @ p["w"] + p["b"]) - part.onehot) / len(rows)
            return {"w": rows.T @ error + strength * p["w"], "b": error.sum(0)}

        start = {
            "w": np.zeros((rows.shape[1], len(part.text)), np.float32),
            "b": np.zeros(len(part.text), np.float32),
        }
        p = adam(start, slopes, steps=200, rate=0.03)
        return lambda embedding, pre: scale * embedding @ p["w"] + p["b"]

    return fit(support, by_folds(support, [3e-4, 3e-3, 3e-2, 3e-1], fit))


def lp_plus_plus(support: Support) -> Predictor:
    """LP++, arXiv:2404.02285: prototypes plus text times a learnt weight per class.

    Both are updated in turn with the paper's step sizes, which follow from Lipschitz bounds.
    """
    rows, count = support.embedding, len(support.embedding)
    onehot, text = support.onehot, support.text
    weights = onehot.T @ rows / np.maximum(onehot.sum(0)[:, None], 1)  # class means
    likeness = rows @ text.T  # (n, C)
    means = onehot.T @ likeness / np.maximum(onehot.sum(0)[:, None], 1)
    blend = np.full(len(text), 250.0 * means.mean(), np.float32)
    rate_weights = 4 * count / float(np.linalg.eigvalsh(rows @ rows.T)[-1])
    rate_blend = count / (4 * float((likeness**2).sum(0).max()))
    for _ in range(300):
        for turn in range(2):
            error = (softmax(rows @ weights.T + likeness * blend) - onehot) / count
            if turn == 0:
                weights = weights - rate_weights * (error.T @ rows)
            else:
                blend = blend - rate_blend * (error * likeness).sum(0)
    return lambda embedding, pre: embedding @ weights.T + (embedding @ text.T) * blend


def tip_adapter_f(support: Support) -> Predictor:
    """Tip-Adapter-F, arXiv:2111.03930: the support set as trainable keys of a cache.

    Residual ratio and sharpness are chosen for the training-free form by leaving each key's own
    shot out; the keys then train by AdamW 1e-3 for 20 epochs' worth of steps at batch 256.
    """
    base = support.scale * support.embedding @ support.text.T
    alpha, beta = 1.0, 5.5  # the paper's start
    if support.shots > 1:
        folds = shot_folds(support.labels)
        same = folds[:, None] == folds[None, :]
        affinity = support.embedding @ support.embedding.T
        best = np.inf
        for sharp in (1.0, 2.0, 5.5, 10.0):
            kernel = np.exp(sharp * (affinity - 1)) * ~same
            term = kernel @ support.onehot
            for ratio in (0.3, 1.0, 3.0, 10.0):
                loss = log_loss(base + ratio * term, support.labels)
                if loss < best:
                    best, alpha, beta = loss, ratio, sharp
    rows = support.embedding

    def slopes(p: dict[str, Array]) -> dict[str, Array]:
        kernel = np.exp(beta * (rows @ p["keys"].T - 1))
        logits = base + alpha * kernel @ support.onehot
        error = (softmax(logits) - support.onehot) / len(rows)
        inner = alpha * beta * (error @ support.onehot.T) * kernel
        return {"keys": inner.T @ rows}

    steps = 20 * max(1, -(-len(rows) // 256))
    keys = adam({"keys": rows.copy()}, slopes, steps=steps, rate=1e-3, decay=0.01)["keys"]
    return lambda embedding, pre: (
        support.scale * embedding @ support.text.T
        + alpha * np.exp(beta * (embedding @ keys.T - 1)) @ support.onehot
    )


def task_res(support: Support) -> Predictor:
    """TaskRes, arXiv:2211.10277: text + 0.5 * residual; Adam 2e-3, 100 (16 shots: 200) epochs."""
    rows, alpha = support.embedding, 0.5

    def classes(residual: Array) -> tuple[Array, Array]:
        moved = support.text + alpha * residual
        norm = np.linalg.norm(moved, axis=1, keepdims=True)
        return moved / norm, norm

    def slopes(p: dict[str, Array]) -> dict[str, Array]:
        unit, norm = classes(p["residual"])
        error = (softmax(support.scale * rows @ unit.T) - support.onehot) / len(rows)
        slope = support.scale * error.T @ rows
        tangent = slope - unit * (slope * unit).sum(1, keepdims=True)
        return {"residual": alpha * tangent / norm}

    epochs = 200 if support.shots >= 16 else 100
    steps = epochs * max(1, -(-len(rows) // 256))
    residual = adam(
        {"residual": np.zeros_like(support.text)}, slopes, steps=steps, rate=2e-3, decay=5e-4
    )["residual"]
    return lambda embedding, pre: support.scale * embedding @ classes(residual)[0].T


def pro_lip(support: Support) -> Predictor:
    """ProLIP, arXiv:2410.05270: W0 + dW, CE + |dW|^2 / N, 300 full-batch Adam steps.

    One rate, 1e-4: anchored, the method is nearly indifferent to it. Where the tower has no
    projection, the embedding takes the place of the features before it.
    """

    def features(part: Support) -> Array:
        return part.embedding if part.pre is None else part.pre

    def tuned(embedding: Array, before: Array, delta: Array) -> tuple[Array, Array]:
        moved = embedding + before @ delta
        norm = np.linalg.norm(moved, axis=1, keepdims=True)
        return moved / norm, norm

    def fit(part: Support, rate: float) -> Predictor:
        before, count = features(part), len(part.embedding)
        anchor = 1.0 / part.shots  # N of the paper is the number of shots

        def slopes(p: dict[str, Array]) -> dict[str, Array]:
            unit, norm = tuned(part.embedding, before, p["delta"])
            error = (softmax(part.scale * unit @ part.text.T) - part.onehot) / count
            slope = part.scale * error @ part.text
            tangent = (slope - unit * (slope * unit).sum(1, keepdims=True)) / norm
            return {"delta": before.T @ tangent + 2 * anchor * p["delta"]}

        start = {"delta": np.zeros((before.shape[1], part.embedding.shape[1]), np.float32)}
        delta = adam(start, slopes, steps=300, rate=rate)["delta"]
        return lambda embedding, pre: (
            part.scale * tuned(embedding, embedding if pre is None else pre, delta)[0] @ part.text.T
        )

    return fit(support, 1e-4)


def clap(support: Support) -> Predictor:
    """CLAP, arXiv:2312.12730 (constraint formulation): class prototypes held to the text's.

    Cross-entropy + sum over classes of lambda_c |w_c - t_c|^2, w = t at the start, AdamW-free SGD
    in the paper; here the same full-batch Adam as the other heads. The multipliers are the paper's
    zero-shot ones, fixed before training: lambda_c is the mean probability that zero-shot gives the
    class on the class's own support pictures, divided by the pictures per class.
    """
    rows, text = support.embedding, support.text
    chance = softmax(support.scale * rows @ text.T)
    onehot = support.onehot
    own = (chance * onehot).sum(0) / np.maximum(onehot.sum(0), 1)
    weight = own[:, None] / support.shots

    def slopes(p: dict[str, Array]) -> dict[str, Array]:
        norm = np.linalg.norm(p["w"], axis=1, keepdims=True)
        unit = p["w"] / norm
        error = (softmax(support.scale * rows @ unit.T) - onehot) / len(rows)
        slope = support.scale * error.T @ rows
        tangent = (slope - unit * (slope * unit).sum(1, keepdims=True)) / norm
        return {"w": tangent + 2 * weight * (p["w"] - text)}

    weights = adam({"w": text.copy()}, slopes, steps=300, rate=1e-3)["w"]
    weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return lambda embedding, pre: support.scale * embedding @ weights.T


METHODS: dict[str, Method] = {
    "zero-shot": zero_shot,
    "linear probe": linear_probe,
    "LP++": lp_plus_plus,
    "Tip-Adapter-F": tip_adapter_f,
    "TaskRes": task_res,
    "CLAP": clap,
    "ProLIP": pro_lip,
}
