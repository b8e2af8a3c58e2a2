"""A frozen block's self-attention as one operator of onnxruntime's.

`com.microsoft.MultiHeadAttention` takes queries, keys and values as (N, T, W), turns them itself
and keeps no scores of all heads. Beside int8 products the dozen nodes that it stands for are a
sixth of a block's time; in a float32 block they are a fifteenth, and there the graph keeps to the
standard's operators. Two spellings are known: open_clip's (split, then heads) and timm's (three
times heads, then unbound). Attention with a mask stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeladder.host.compile.int8_products import CONTRIB

_HEADS_FIRST, _SWAPPED, _UNBOUND = [0, 2, 1, 3], [0, 1, 3, 2], [2, 0, 3, 1, 4]


@dataclass
class _Graph:
    """A graph's nodes by what they make, and its small constants."""

    model: onnx.ModelProto

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constants = {t.name: t for t in graph.initializer if np.prod(t.dims) <= 8}  # noqa: PLR2004

    def made(
        self, name: str, operator: str, perm: list[int] | None = None
    ) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of this operator (and turns so)."""
        node = self.makers.get(name)
        if node is None or node.op_type != operator:
            return None
        if perm is not None and not any(list(a.ints) == perm for a in node.attribute):
            return None
        return node

    def value(self, name: str) -> list[float] | None:
        """A small constant's numbers."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor).reshape(-1).tolist()


@dataclass
class _Attention:
    """What one attention reads and gives."""

    parts: list[str]  # queries, keys, values; or the one tensor that holds them side by side
    heads: int
    scale: float
    output: str


def fuse_attention(model: onnx.ModelProto) -> int:
    """Write attention without a mask as one node, in place; returns how many there were."""
    known = _Graph(model)
    graph, fused = model.graph, 0
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        found = _match(known, softmax)
        if found is None:
            continue
        _replace(model, found, fused)
        fused += 1
    if fused:
        _drop_unread(graph)
        if all(item.domain != CONTRIB for item in model.opset_import):
            model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return fused


def _match(graph: _Graph, softmax: onnx.NodeProto) -> _Attention | None:
    """The attention around a softmax; None where it is another."""
    scores = graph.made(softmax.input[0], "MatMul")
    mixed = _reader(graph.model, softmax.output[0], "MatMul")
    if scores is None or mixed is None:
        return None
    scaled = graph.made(scores.input[0], "Mul")
    keys = graph.made(scores.input[1], "Transpose", _SWAPPED)
    turned = _reader(graph.model, mixed.output[0], "Transpose")
    if scaled is None or keys is None or turned is None:
        return None
    joined = _reader(graph.model, turned.output[0], "Reshape")
    scale = graph.value(scaled.input[1])
    if (
        joined is None
        or scale is None
        or graph.made(turned.output[0], "Transpose", _HEADS_FIRST) is None
    ):
        return None
    sides = [_side(graph, name) for name in (scaled.input[0], keys.input[0], mixed.input[1])]
    if any(side is None for side in sides):
        return None
    names = [side[0] for side in sides if side is not None]
    places = [side[1] for side in sides if side is not None]
    heads = {side[2] for side in sides if side is not None}
    if len(heads) != 1 or places not in ([-1, -1, -1], [0, 1, 2]):
        return None
    if places[0] == 0 and len(set(names)) != 1:
        return None
    parts = names if places[0] < 0 else names[:1]
    return _Attention(parts, heads.pop(), scale[0], joined.output[0])


def _side(graph: _Graph, name: str) -> tuple[str, int, int] | None:
    """(tensor, which of three it is or -1, heads) behind queries, keys or values (N, H, T, D)."""
    turned = graph.made(name, "Transpose", _HEADS_FIRST)
    if turned is not None:  # open_clip: (N, T, W) -> (N, T, H, D) -> (N, H, T, D)
        split = graph.made(turned.input[0], "Reshape")
        shape = None if split is None else graph.value(split.input[1])
        if split is None or shape is None or len(shape) != 4:  # noqa: PLR2004
            return None
        return split.input[0], -1, int(shape[2])
    same = graph.made(name, "Reshape")  # timm: (N, T, 3 W) -> (3, N, H, T, D), unbound
    unbound = None if same is None else graph.made(same.input[0], "Split")
    moved = None if unbound is None else graph.made(unbound.input[0], "Transpose", _UNBOUND)
    split = None if moved is None else graph.made(moved.input[0], "Reshape")
    shape = None if split is None else graph.value(split.input[1])
    if same is None or unbound is None or split is None or shape is None or len(shape) != 5:  # noqa: PLR2004
        return None
    return split.input[0], list(unbound.output).index(same.input[0]), int(shape[3])


def _reader(model: onnx.ModelProto, name: str, operator: str) -> onnx.NodeProto | None:
    """The only node that reads a tensor, if it is of this operator."""
    readers = [node for node in model.graph.node if name in node.input]
    if len(readers) != 1 or readers[0].op_type != operator:
        return None
    return readers[0]


def _replace(model: onnx.ModelProto, found: _Attention, number: int) -> None:
    """Put the one node where the attention's last one is."""
    graph = model.graph
    nodes, parts = [], found.parts
    if len(parts) == 1:
        packed, parts = parts[0], [f"attention/{number}/{side}" for side in "qkv"]
        nodes.append(helper.make_node("Split", [packed], parts, axis=2, num_outputs=3))
    nodes.append(
        helper.make_node(
            *("MultiHeadAttention", parts, [found.output]),
            domain=CONTRIB,
            num_heads=found.heads,
            scale=found.scale,
        )
    )
    place = next(i for i, node in enumerate(graph.node) if found.output in node.output)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*rest[:place], *nodes, *rest[place + 1 :]])


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes that nothing reads any more, and their constants."""
    given = {item.name for item in graph.output}
    nodes = list(graph.node)
    while True:
        read = given | {name for node in nodes for name in node.input}
        kept = [node for node in nodes if read.intersection(node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
