"""A backbone of two segments and random weights, small enough to check by hand in numpy.

Made with the package's own ONNX writer, so that environments without the onnx package have it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT, INT64

SIZE = 8  # px
TOKENS, WIDTH, PRE, DIM, CONTEXT = 4, 16, 12, 6, 8
WORDS = ["[PAD]", "[UNK]", "a", "photo", "of", "the", "dress", "hat", "shirt", "red", "long"]


class TinyBundle:
    """The attributes of a Bundle that the data side reads, with its towers' weights."""

    def __init__(self, folder: Path, seed: int = 0, gain: float = 1.0):
        self.folder = folder
        random = np.random.default_rng(seed)
        self.weights: dict[str, np.ndarray] = {
            name: random.normal(0, gain * 0.3, shape).astype(np.float32)
            for name, shape in {
                "image_in": (3 * SIZE * SIZE // TOKENS, WIDTH),
                "image_block": (WIDTH, WIDTH),
                "image_pool": (TOKENS * WIDTH, PRE),
                "image_out": (PRE, DIM),
                "text_in": (CONTEXT, 2 * WIDTH),
                "text_block": (WIDTH, WIDTH),
                "text_out": (2 * WIDTH, DIM),
            }.items()
        }
        for side in ("image", "text"):
            (folder / side).mkdir(parents=True, exist_ok=True)
        _write_image(folder / "image", self.weights)
        _write_text(folder / "text", self.weights)
        _write_tokenizer(folder / "tokenizer.json")
        self.manifest = _manifest(seed)

    def path(self, name: str) -> Path:
        """A file of the bundle."""
        return self.folder / name

    def tower_key(self, side: str) -> str:
        """As a bundle's, of the declared weights."""
        return str(getattr(self.manifest, side).digest)

    def image_reference(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The image tower in numpy, float32."""
        hidden = pixels.reshape(len(pixels), TOKENS, -1) @ self.weights["image_in"]
        second = np.tanh(hidden @ self.weights["image_block"])
        pre = second.reshape(len(pixels), -1) @ self.weights["image_pool"]
        out = pre @ self.weights["image_out"]
        return {"tap_0": hidden, "tap_1": second, "embedding_pre": pre, "embedding": out}

    def text_reference(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The text tower in numpy, float32."""
        hidden = (tokens.astype(np.float32) @ self.weights["text_in"]).reshape(-1, 2, WIDTH)
        second = np.tanh(hidden @ self.weights["text_block"])
        out = (second + hidden).reshape(len(tokens), -1) @ self.weights["text_out"]
        return {"text_tap_0": second, "embedding": out}


def _write_image(folder: Path, weights: dict[str, np.ndarray]) -> None:
    graph = _graph()
    shape = graph.constant("shape", np.array([0, TOKENS, -1], np.int64))
    flat = graph.add("Reshape", ["pixels", shape])
    graph.add("MatMul", [flat, graph.constant("w", weights["image_in"])], "hidden_0")
    graph.add("Identity", ["hidden_0"], "tap_0")
    graph.declare("pixels", FLOAT, ["N", 3, SIZE, SIZE], out=False)
    for name in ("hidden_0", "tap_0"):
        graph.declare(name, FLOAT, ["N", TOKENS, WIDTH], out=True)
    graph.write(folder / "00.onnx", {}, "test")
    graph = _graph()
    product = graph.add("MatMul", ["hidden_0", graph.constant("w", weights["image_block"])])
    graph.add("Tanh", [product], "tap_1")
    flat = graph.add("Reshape", ["tap_1", graph.constant("s", np.array([0, -1], np.int64))])
    graph.add("MatMul", [flat, graph.constant("p", weights["image_pool"])], "pooled")
    graph.add("MatMul", ["pooled", graph.constant("o", weights["image_out"])], "projected")
    graph.declare("hidden_0", FLOAT, ["N", TOKENS, WIDTH], out=False)
    graph.declare("tap_1", FLOAT, ["N", TOKENS, WIDTH], out=True)
    graph.declare("pooled", FLOAT, ["N", PRE], out=True)
    graph.declare("projected", FLOAT, ["N", DIM], out=True)
    graph.write(folder / "01.onnx", {}, "test")


def _write_text(folder: Path, weights: dict[str, np.ndarray]) -> None:
    graph = _graph()
    numbers = graph.add("Cast", ["tokens"], attributes={"to": FLOAT})
    product = graph.add("MatMul", [numbers, graph.constant("w", weights["text_in"])])
    shape = graph.constant("shape", np.array([0, 2, WIDTH], np.int64))
    graph.add("Reshape", [product, shape], "text_hidden_0")
    graph.declare("tokens", INT64, ["N", CONTEXT], out=False)
    graph.declare("text_hidden_0", FLOAT, ["N", 2, WIDTH], out=True)
    graph.write(folder / "00.onnx", {}, "test")
    graph = _graph()
    product = graph.add("MatMul", ["text_hidden_0", graph.constant("w", weights["text_block"])])
    graph.add("Tanh", [product], "text_tap_0")
    both = graph.add("Add", ["text_tap_0", "text_hidden_0"])
    flat = graph.add("Reshape", [both, graph.constant("s", np.array([0, -1], np.int64))])
    graph.add("MatMul", [flat, graph.constant("o", weights["text_out"])], "text_projected")
    graph.declare("text_hidden_0", FLOAT, ["N", 2, WIDTH], out=False)
    graph.declare("text_tap_0", FLOAT, ["N", 2, WIDTH], out=True)
    graph.declare("text_projected", FLOAT, ["N", DIM], out=True)
    graph.write(folder / "01.onnx", {}, "test")


def _graph() -> Graph:
    return Graph(opsets={"": 17})


def _write_tokenizer(path: Path) -> None:
    import tokenizers

    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(path))


def _tensor(name: str, *shape: int) -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=list(shape), dtype="float32")


def _segment(file: str, inputs: list[Any], outputs: list[Any]) -> SimpleNamespace:
    return SimpleNamespace(file=file, inputs=inputs, outputs=outputs, convolves=False)


def _tap(name: str, tokens: int) -> SimpleNamespace:
    return SimpleNamespace(name=name, block=0, tokens=tokens, width=WIDTH)


def _manifest(seed: int) -> SimpleNamespace:
    hidden = _tensor("hidden_0", TOKENS, WIDTH)
    text_hidden = _tensor("text_hidden_0", 2, WIDTH)
    image = SimpleNamespace(
        segments=[
            _segment(
                "image/00.onnx",
                [_tensor("pixels", 3, SIZE, SIZE)],
                [hidden, _tensor("tap_0", TOKENS, WIDTH)],
            ),
            _segment(
                "image/01.onnx",
                [hidden],
                [
                    _tensor("tap_1", TOKENS, WIDTH),
                    _tensor("pooled", PRE),
                    _tensor("projected", DIM),
                ],
            ),
        ],
        taps=[_tap("tap_0", TOKENS), _tap("tap_1", TOKENS)],
        embedding="projected",
        embedding_pre="pooled",
        digest=f"image-{seed}",
    )
    text = SimpleNamespace(
        segments=[
            _segment("text/00.onnx", [_tensor("tokens", CONTEXT)], [text_hidden]),
            _segment(
                "text/01.onnx",
                [text_hidden],
                [_tensor("text_tap_0", 2, WIDTH), _tensor("text_projected", DIM)],
            ),
        ],
        taps=[_tap("text_tap_0", 2)],
        embedding="text_projected",
        embedding_pre=None,
        digest=f"text-{seed}",
    )
    groups = [
        SimpleNamespace(input="i0", side="image", taps=[0, 1], tokens=TOKENS, width=WIDTH),
        SimpleNamespace(input="t0", side="text", taps=[0], tokens=2, width=WIDTH),
    ]
    return SimpleNamespace(
        model=SimpleNamespace(embedding_dim=DIM),
        preprocess=SimpleNamespace(
            size=SIZE,
            resize_mode="shortest",
            interpolation="bicubic",
            mean=[0.5, 0.5, 0.5],
            std=[0.25, 0.25, 0.25],
            fill=0,
        ),
        tokenizer=SimpleNamespace(
            kind="huggingface",
            files=["tokenizer.json"],
            context_length=CONTEXT,
            options={"clean": "canonicalize"},
        ),
        image=image,
        text=text,
        ladder=SimpleNamespace(groups=groups, image_inputs=["image_embedding_pre"]),
    )
