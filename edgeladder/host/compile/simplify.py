"""Peephole simplification of a graph, before and after differentiation.

Each pass is exact up to rounding. Before: products and transpositions become the fused forms whose
gradients are again one operator each. After: what differentiation leaves behind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeladder.host.compile.extent import Shape, substitute
from edgeladder.host.compile.graph import CONTRIB, Graph, Node


def before(graph: Graph) -> None:
    """Passes for a forward graph that is about to be differentiated."""
    fuse_silu(graph)
    fuse_transposed_products(graph)
    fuse_residual_products(graph)
    merge_equal(graph)
    graph.prune()


def after(graph: Graph) -> None:
    """Passes for a finished training graph."""
    for _ in range(3):
        count = len(graph.nodes)
        drop_identities(graph)
        merge_reshapes(graph)
        subtract_negatives(graph)
        fuse_moved_operands(graph)
        fuse_residual_products(graph)
        merge_equal(graph)
        graph.prune()
        if len(graph.nodes) == count:
            break


# What a permutation of a (.., ..) or 3-D operand means for FusedMatMul: (trans, transBatch).
# transBatch swaps the first axis with the batch: [M, batch, K] is read as [batch, M, K].
_PERMUTATIONS = {
    (1, 0): (1, 0),
    (0, 2, 1): (1, 0),
    (1, 0, 2): (0, 1),
    (1, 2, 0): (1, 1),
}


def fuse_transposed_products(graph: Graph) -> None:
    """MatMul of transposed operands -> FusedMatMul that reads them where they lie."""
    producers = graph.producers()
    for node in graph.nodes:
        if node.op != "MatMul" or node.domain:
            continue
        flags = {}
        for place, letter in enumerate("AB"):
            source = producers.get(node.inputs[place])
            if source is None or source.op != "Transpose":
                continue
            ranks = {len(graph.shapes[name]) for name in node.inputs}
            order = tuple(source.attributes["perm"])
            if order not in _PERMUTATIONS or len(ranks) != 1:
                continue
            trans, batch = _PERMUTATIONS[order]
            flags[f"trans{letter}"], flags[f"transBatch{letter}"] = trans, batch
            node.inputs[place] = source.inputs[0]
        if flags:
            node.op, node.domain = "FusedMatMul", CONTRIB
            node.attributes = {key: value for key, value in flags.items() if value}
    graph.prune()


def fuse_moved_operands(graph: Graph) -> None:
    """FusedMatMul of an operand whose batch axis was moved: it reads that where it lies."""
    producers = graph.producers()
    for node in graph.nodes:
        if node.op != "FusedMatMul":
            continue
        for place, letter in enumerate("AB"):
            source = producers.get(node.inputs[place])
            flag = f"transBatch{letter}"
            moved = source is not None and source.attributes.get("perm") == [1, 0, 2]
            if source is not None and moved and not node.attributes.get(flag):
                node.attributes[flag] = 1
                node.inputs[place] = source.inputs[0]


def fuse_silu(graph: Graph) -> None:
    """Mul(x, Sigmoid(x)) -> QuickGelu with alpha 1: one pass over memory."""
    producers = graph.producers()
    for node in graph.nodes:
        if node.op != "Mul":
            continue
        for place in (0, 1):
            gate = producers.get(node.inputs[place])
            x = node.inputs[1 - place]
            if gate is not None and gate.op == "Sigmoid" and gate.inputs[0] == x:
                node.op, node.domain, node.inputs = "QuickGelu", CONTRIB, [x]
                node.attributes = {"alpha": 1.0}
                break
    graph.prune()


def fuse_residual_products(graph: Graph) -> None:
    """Add(MatMul(A, B), C) of equal shapes -> Gemm(A, B, C), one pass less over memory."""
    producers, consumers = graph.producers(), graph.consumers()
    for node in list(graph.nodes):
        if node.op != "Add":
            continue
        for place in (0, 1):
            product = producers.get(node.inputs[place])
            other = node.inputs[1 - place]
            if (
                product is not None
                and (product.op == "MatMul" or (product.op == "Gemm" and len(product.inputs) == 2))
                and len(graph.shapes[product.inputs[0]]) == 2
                and len(graph.shapes[product.inputs[1]]) == 2
                and len(consumers.get(product.outputs[0], [])) == 1
                and product.outputs[0] not in graph.outputs
                and graph.shapes[other] == graph.shapes[product.outputs[0]]
            ):
                node.op, node.inputs = "Gemm", [*product.inputs, other]
                node.attributes = dict(product.attributes)
                break
    graph.prune()


def subtract_negatives(graph: Graph) -> None:
    """Add(x, Neg(y)) -> Sub(x, y)."""
    producers = graph.producers()
    for node in graph.nodes:
        if node.op != "Add":
            continue
        for place in (0, 1):
            negative = producers.get(node.inputs[place])
            if negative is not None and negative.op == "Neg":
                node.op, node.inputs = "Sub", [node.inputs[1 - place], negative.inputs[0]]
                break


def _key(node: Node) -> tuple[object, ...]:
    attributes = tuple(
        sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in node.attributes.items())
    )
    return (node.op, node.domain, tuple(node.inputs), attributes)


def merge_equal(graph: Graph) -> None:
    """Common subexpressions within one scope: recomputed rungs have scopes of their own."""
    seen: dict[tuple[object, ...], Node] = {}
    for node in list(graph.nodes):
        key = (*_key(node), node.scope)
        first = seen.setdefault(key, node)
        if first is not node and not any(o in graph.outputs for o in node.outputs):
            for old, new in zip(node.outputs, first.outputs, strict=True):
                graph.rename(old, new)
            graph.nodes.remove(node)


def drop_identities(graph: Graph, *, stops: bool = True) -> None:
    """Identity that no graph output needs a name for; `stops`: those that stop gradients too."""
    for node in list(graph.nodes):
        stop = "stop_gradient" in node.outputs[0] and not stops
        if node.op == "Identity" and node.outputs[0] not in graph.outputs and not stop:
            graph.rename(node.outputs[0], node.inputs[0])
            graph.nodes.remove(node)


def merge_reshapes(graph: Graph) -> None:
    """Reshape of a reshape -> one; Reshape to the shape a value has -> none."""
    producers = graph.producers()
    for node in list(graph.nodes):
        if node.op != "Reshape":
            continue
        source = producers.get(node.inputs[0])
        if source is not None and source.op == "Reshape":
            node.inputs[0] = source.inputs[0]
        same = graph.shapes[node.inputs[0]] == graph.shapes[node.outputs[0]]
        if same and node.outputs[0] not in graph.outputs:
            graph.rename(node.outputs[0], node.inputs[0])
            graph.nodes.remove(node)


def specialise(graph: Graph, values: Mapping[str, int]) -> None:
    """Fix symbols to numbers; values left with no element are removed from what reads them.

    With C = 0 the joint graph of pictures and classes becomes the graph of pictures alone: a
    Concat loses its empty parts, a Split its empty pieces, and everything else that is empty goes.
    """

    def fixed(shape: Shape) -> Shape:
        return tuple(substitute(dim, values) for dim in shape)

    graph.shapes = {name: fixed(shape) for name, shape in graph.shapes.items()}
    for name, dims in list(graph.extents.items()):
        graph.extents[name] = fixed(dims)
        if all(isinstance(dim, int) for dim in graph.extents[name]):
            graph.constants[name] = np.array(graph.extents.pop(name), np.int64)
    empty = {name for name, shape in graph.shapes.items() if 0 in shape}
    for node in list(graph.nodes):
        if all(output in empty for output in node.outputs):
            graph.nodes.remove(node)
        elif node.op == "Concat":
            node.inputs = [name for name in node.inputs if name not in empty]
            if len(node.inputs) == 1:
                node.op, node.attributes = "Identity", {}
        elif node.op == "Split":
            _split_without_empty(graph, node, empty)
    graph.inputs = [name for name in graph.inputs if name not in empty]
    graph.outputs = [name for name in graph.outputs if name not in empty]
    drop_identities(graph, stops=False)  # gradients may still be to come
    graph.prune()


def _split_without_empty(graph: Graph, node: Node, empty: set[str]) -> None:
    axis = node.attributes["axis"]
    node.outputs = [name for name in node.outputs if name not in empty]
    if len(node.outputs) == 1:
        node.op, node.attributes, node.inputs = "Identity", {}, node.inputs[:1]
    else:
        node.inputs[1] = graph.extent([graph.shapes[name][axis] for name in node.outputs])
