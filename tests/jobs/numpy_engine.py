"""An engine in plain numpy, one residual linear layer per side: the loop's test double.

The mathematics are real (cross-entropy over cosine logits, exact gradients, AdamW), so that
resuming, chunking and diverging mean what they mean for the real engines.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from edgeladder.runtime.engine.protocol import StepPlan, StepResult

SCALE = 20.0


def normalize(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


class NumpyEngine:
    name = "numpy"

    def __init__(self, width=8, features=12, decay=0.01, seed=0, delay=0.0, leak_bytes=0):
        rng = np.random.default_rng(seed)
        self.shapes = {"image": (features, width), "text": (features, width)}
        count = sum(a * b for a, b in self.shapes.values())
        self.flat = (0.1 * rng.normal(size=count)).astype(np.float32)
        self.first = np.zeros(count, np.float32)
        self.second = np.zeros(count, np.float32)
        self.count = np.zeros(1, np.int64)
        self.decay, self.delay, self.leak_bytes = decay, delay, leak_bytes
        self.leaked = []
        self.chunk = None
        self.chunks_seen = []

    def views(self, flat):
        values, start = {}, 0
        for name, shape in self.shapes.items():
            size = shape[0] * shape[1]
            values[name] = flat[start : start + size].reshape(shape)
            start += size
        return values

    def encode_image(self, taps, embedding, extra):
        return normalize(embedding + taps[0].mean(axis=(0, 1)) @ self.views(self.flat)["image"])

    def encode_text(self, taps, embedding):
        return normalize(embedding + taps[0].mean(axis=(0, 1)) @ self.views(self.flat)["text"])

    def step(self, inputs, learning_rate):
        if self.delay:
            time.sleep(self.delay)
        if self.leak_bytes:
            self.leaked.append(np.ones(self.leak_bytes, np.uint8))
        self.chunks_seen.append(self.chunk)
        count, classes = len(inputs.labels), len(inputs.text_embedding)
        chunk = self.chunk or max(count, classes)
        weights = self.views(self.flat)
        x = [inputs.image_taps(s, min(s + chunk, count))[0] for s in range(0, count, chunk)]
        t = [inputs.text_taps(s, min(s + chunk, classes))[0] for s in range(0, classes, chunk)]
        x = np.concatenate([part.mean(axis=(0, 1)) for part in x])
        t = np.concatenate([part.mean(axis=(0, 1)) for part in t])
        raw_image = inputs.image_embedding + x @ weights["image"]
        raw_text = inputs.text_embedding + t @ weights["text"]
        image, text = normalize(raw_image), normalize(raw_text)
        logits = SCALE * image @ text.T
        logits -= logits.max(axis=1, keepdims=True)
        share = np.exp(logits)
        share /= share.sum(axis=1, keepdims=True)
        rows = np.arange(count)
        loss = float(-np.log(share[rows, inputs.labels]).mean())
        share[rows, inputs.labels] -= 1
        share *= SCALE / count

        def through(raw, unit, gradient):
            inside = gradient - unit * (gradient * unit).sum(axis=1, keepdims=True)
            return inside / np.linalg.norm(raw, axis=1, keepdims=True)

        gradient = np.zeros_like(self.flat)
        parts = self.views(gradient)
        parts["image"][:] = x.T @ through(raw_image, image, share @ text)
        parts["text"][:] = t.T @ through(raw_text, text, share.T @ image)
        norm = float(np.linalg.norm(gradient))
        self.update(gradient, np.float32(learning_rate))
        return StepResult(loss=loss, gradient_norm=norm)

    def update(self, gradient, rate):
        self.count += 1
        step = int(self.count[0])
        self.flat *= np.float32(1) - rate * np.float32(self.decay)
        self.first += np.float32(0.1) * (gradient - self.first)
        self.second += np.float32(0.001) * (gradient**2 - self.second)
        unbiased = self.first / np.float32(1 - 0.9**step)
        spread = np.sqrt(self.second / np.float32(1 - 0.999**step)) + np.float32(1e-8)
        self.flat -= rate * unbiased / spread

    def state(self):
        return {
            "parameters": self.flat,
            "first": self.first,
            "second": self.second,
            "step": self.count,
        }

    def load_state(self, state):
        self.flat[:] = state["parameters"]
        self.first[:] = state["first"]
        self.second[:] = state["second"]
        self.count[:] = state["step"]

    def parameters(self):
        return {name: value.copy() for name, value in self.views(self.flat).items()}

    def set_parameters(self, values):
        for name, value in values.items():
            self.views(self.flat)[name][:] = value

    def buffers(self):
        return {}

    def set_buffers(self, values):
        pass

    def set_chunk(self, chunk):
        self.chunk = chunk

    def close(self):
        pass


class RandomBatches:
    """Separable random pictures in a shuffled order, with the sampler's contract."""

    def __init__(self, pictures=60, classes=5, batch=8, features=12, width=8, seed=3):
        rng = np.random.default_rng(seed)
        self.classes, self.batch, self.seed = classes, batch, seed
        self.labels = np.arange(pictures) % classes
        centres = rng.normal(size=(classes, features))
        self.taps = (centres[self.labels] + rng.normal(size=(pictures, features))).astype("f")
        self.embedding = normalize(rng.normal(size=(pictures, width))).astype("f")
        self.text = normalize(rng.normal(size=(classes, width))).astype("f")
        self.text_features = centres.astype("f")
        self.epoch, self.position = 0, 0
        self.trimmed = 0

    def next(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.labels))
        chosen = order[self.position : self.position + self.batch]
        self.position += self.batch
        if self.position >= len(order):
            self.epoch, self.position = self.epoch + 1, 0
        taps, text = self.taps[chosen], self.text_features
        return SimpleNamespace(
            labels=self.labels[chosen],
            image_embedding=self.embedding[chosen],
            text_embedding=self.text,
            image_extra={},
            image_taps=lambda a, b: [taps[a:b][None, None]],
            text_taps=lambda a, b: [text[a:b][None, None]],
        )

    def state(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state(self, state):
        self.epoch, self.position = state["epoch"], state["position"]

    def trim(self):
        self.trimmed += 1


def slow_engine(bundle, plan: StepPlan, train, loss):
    """For `--engine numpy_engine:slow_engine`."""
    return NumpyEngine(delay=0.05)
