"""Resizing inside a deployed file's graph: any picture in, the square that predict makes of it.

Predict resizes as open_clip's evaluation transform does on Pillow (`pictures.decode`): antialiased,
the kernel cut off at the picture's edge and brought to a sum of 1 again, and rounded to 8 bits
after the horizontal pass and after the vertical one. ONNX's Resize is that resampling with
antialias=1, exclude_outside=1 and, for bicubic, cubic_coeff_a=-0.5 (opset 18).

onnxruntime resamples uint8 with both roundings. Others may round otherwise, or wrap around where a
cubic overshoots; so a portable file resamples in float32, one direction at a time, and rounds by
itself, for four times the memory.

A value is within 1 grey level of Pillow's; fewer than 1 in 50 differs at all: Pillow's weights are
whole numbers of 22 bits. Where a picture is squashed, Pillow 13 takes the vertical pass first if
that direction alone shrinks, or shrinks much more: there 1 in 4 differs, by up to 4 on noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import ConfigError
from edgeladder.core.onnx_graph import Attribute, Graph
from edgeladder.core.protobuf import FLOAT, INT64

if TYPE_CHECKING:
    from edgeladder.core.manifest import PreprocessRecord

_DOUBLE = 11  # TensorProto.DataType
_KERNELS: dict[str, dict[str, Attribute]] = {
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
    "bilinear": {"mode": "linear"},
}


def resize(graph: Graph, planes: str, preprocess: PreprocessRecord, *, portable: bool) -> str:
    """Append what brings a picture of any size to the tower's square.

    Args:
        graph: of opset 18 or later.
        planes: (N, 3, H, W) uint8.
        preprocess: how; its `size` is S.
        portable: round in the graph, for runtimes that do not round as Pillow does.

    Returns:
        The tensor (N, 3, S, S) uint8; portable: float32, whole numbers.

    Raises:
        ConfigError: a way of interpolating that ONNX has not.
    """
    if preprocess.interpolation not in _KERNELS:
        raise ConfigError(
            f"ONNX cannot resize by {preprocess.interpolation}, as this model wants",
            where="--include-resize",
            remedy="deploy without it, and resize before the file",
        )
    shape = graph.add("Shape", [planes])
    sides = _part(graph, shape, 2, 4)
    target = {"shortest": _shortest, "longest": _longest, "squash": _squash}[
        preprocess.resize_mode
    ](graph, sides, preprocess.size)
    small = _resample(graph, planes, shape, target, preprocess, portable)
    if preprocess.resize_mode == "shortest":
        return _middle(graph, small, target, preprocess.size)
    if preprocess.resize_mode == "longest":
        fill = np.array(preprocess.fill, np.float32 if portable else np.uint8)
        return _padded(graph, small, target, preprocess.size, fill)
    return small


def _whole(graph: Graph, name: str, *values: int) -> str:
    """A vector of whole numbers."""
    return graph.constant(f"resize/{name}", np.array(values, np.int64))


def _part(graph: Graph, vector: str, start: int, stop: int) -> str:
    return graph.add(
        "Slice", [vector, _whole(graph, f"{start}", start), _whole(graph, f"{stop}", stop)]
    )


def _shortest(graph: Graph, sides: str, size: int) -> str:
    """Sides (height, width) with the shorter one brought to `size`, the longer one truncated."""
    wide = graph.add("Mul", [sides, _whole(graph, "size", size)])
    return graph.add("Div", [wide, graph.add("ReduceMin", [sides])])  # whole: a quotient's floor


def _longest(graph: Graph, sides: str, size: int) -> str:
    """Sides with the longer one brought to `size`, rounded half to even, at least 1."""
    exact = graph.add("Cast", [sides], attributes={"to": _DOUBLE})
    side = graph.add("Cast", [_whole(graph, "size", size)], attributes={"to": _DOUBLE})
    ratio = graph.add("Div", [graph.add("ReduceMax", [exact]), side])
    near = graph.add("Round", [graph.add("Div", [exact, ratio])])
    whole = graph.add("Cast", [near], attributes={"to": INT64})
    return graph.add("Max", [whole, _whole(graph, "1", 1)])


def _squash(graph: Graph, sides: str, size: int) -> str:
    return _whole(graph, "square", size, size)


def _resample(
    graph: Graph,
    planes: str,
    shape: str,
    target: str,
    preprocess: PreprocessRecord,
    portable: bool,
) -> str:
    """`planes` at the sides of `target`, (height, width)."""
    told: dict[str, Attribute] = {
        **_KERNELS[preprocess.interpolation],
        "antialias": 1,
        "exclude_outside": 1,
        "coordinate_transformation_mode": "half_pixel",
    }

    def resampled(name: str, *sizes: str) -> str:
        wanted = graph.add("Concat", sizes, attributes={"axis": 0})
        return graph.add("Resize", [name, "", "", wanted], attributes=told)

    count = _part(graph, shape, 0, 2)
    if not portable:
        return resampled(planes, count, target)
    wide = graph.add("Cast", [planes], attributes={"to": FLOAT})
    height, width = _part(graph, shape, 2, 3), _part(graph, target, 1, 2)
    across = _rounded(graph, resampled(wide, count, height, width))
    return _rounded(graph, resampled(across, count, target))


def _rounded(graph: Graph, name: str) -> str:
    """Whole numbers from 0 to 255, halves up."""
    half = graph.constant("resize/half", np.array(0.5, np.float32))
    low = graph.constant("resize/black", np.array(0, np.float32))
    high = graph.constant("resize/white", np.array(255, np.float32))
    near = graph.add("Floor", [graph.add("Add", [name, half])])
    return graph.add("Clip", [near, low, high])


def _middle(graph: Graph, small: str, target: str, size: int) -> str:
    """The middle square, from `round((side - size) / 2)` on, halves to even as Python rounds."""
    spare = graph.add("Sub", [target, _whole(graph, "size", size)])
    half = graph.constant("resize/half", np.array(0.5, np.float32))
    exact = graph.add("Mul", [graph.add("Cast", [spare], attributes={"to": FLOAT}), half])
    start = graph.add("Cast", [graph.add("Round", [exact])], attributes={"to": INT64})
    stop = graph.add("Add", [start, _whole(graph, "size", size)])
    return graph.add("Slice", [small, start, stop, _whole(graph, "axes", 2, 3)])


def _padded(graph: Graph, small: str, target: str, size: int, fill: np.ndarray) -> str:
    """In the middle of a square of `fill`."""
    spare = graph.add("Sub", [_whole(graph, "size", size), target])
    before = graph.add("Div", [spare, _whole(graph, "2", 2)])
    after = graph.add("Sub", [spare, before])
    none = _whole(graph, "none", 0, 0)
    pads = graph.add("Concat", [none, before, none, after], attributes={"axis": 0})
    return graph.add("Pad", [small, pads, graph.constant("resize/fill", fill)])
