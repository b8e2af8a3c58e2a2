"""`forward.onnx` -> the graphs a training step is made of, in ordinary ONNX operators.

fused, recompute   taps, embeddings, targets, parameters -> loss and every gradient
encode_*           one side's taps and embeddings -> tuned embeddings
loss               tuned embeddings, targets -> loss and the embeddings' gradients
backward_*         one side again and its embeddings' gradient -> gradients, added to sums
forward_saved_*    encoding that hands on the activations which the gradients will need
backward_saved_*   the gradients from those, for chunks that fit and need no second pass

The one-sided graphs are the joint one with no classes (or no pictures): what is empty drops out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile import simplify
from edgeladder.host.compile.differentiate import Backward
from edgeladder.host.compile.extent import Extent, Shape, evaluate, symbol
from edgeladder.host.compile.graph import Graph, Node
from edgeladder.host.compile.vjp import RULES

LOSS, IMAGE, TEXT, TARGETS = "loss", "image", "text", "targets"
SIDES = {IMAGE: "C", TEXT: "B"}  # side -> the symbol that is zero in its graphs


@dataclass(frozen=True)
class Trained:
    """Which inputs of the forward graph are parameters and which are untrained state."""

    parameters: Sequence[str]
    buffers: Sequence[str] = ()


def gradient_of(parameter: str) -> str:
    """The name of a parameter's gradient, output of fused and backward graphs."""
    return f"gradient/{parameter}"


def sum_of(parameter: str) -> str:
    """The name of a running sum of gradients, input of backward graphs."""
    return f"sum/{parameter}"


def fused(forward: Graph, trained: Trained, *, recompute: bool = False) -> Graph:
    """Loss and all gradients in one graph; with `recompute`, each rung again in backward."""
    graph = forward.copy("recompute" if recompute else "fused")
    graph.outputs = [LOSS]
    graph.prune()
    simplify.before(graph)
    one = graph.constant(1.0)
    backward = Backward(graph, trained.parameters, RULES, recompute=recompute)
    found = backward.run({LOSS: one}, trained.parameters)
    _publish(graph, {gradient_of(name): found[name] for name in trained.parameters})
    simplify.after(graph)
    return graph


def encode(forward: Graph, side: str) -> Graph:
    """One side's tuned embeddings."""
    graph = _one_sided(forward, side, f"encode_{side}")
    simplify.before(graph)
    simplify.after(graph)
    _drop_unused_inputs(graph)
    return graph


def backward(forward: Graph, trained: Trained, side: str) -> Graph:
    """Gradients of one side from its embeddings' gradient, added to running sums."""
    return _backward(forward, trained, side, outputs=[])


def _backward(forward: Graph, trained: Trained, side: str, outputs: list[str]) -> Graph:
    graph = _one_sided(forward, side, f"backward_{side}")
    simplify.before(graph)
    wanted = _reached(graph, trained.parameters)
    seed = graph.add_input(f"{side}_gradient", graph.shapes[side])
    backward = Backward(graph, wanted, RULES)
    found = backward.run({side: seed}, wanted)
    graph.scope = "accumulate"
    totals = {}
    for name in wanted:
        running = graph.add_input(sum_of(name), graph.shapes[name])
        totals[gradient_of(name)] = backward.binary("Add", found[name], running)
    graph.outputs = outputs
    _publish(graph, totals)
    simplify.after(graph)
    _drop_unused_inputs(graph)
    check_aliases(graph, {sum_of(n): gradient_of(n) for n in wanted})
    return graph


def kept(forward: Graph, trained: Trained, side: str) -> tuple[Graph, Graph]:
    """`backward` cut in two: the forward part with its residuals, and the rest from them."""
    whole = _backward(forward, trained, side, outputs=[side])
    given = set(whole.inputs) | set(whole.constants) | set(whole.extents)
    producers = whole.producers()
    ahead = {id(node) for node in whole.nodes if not _behind(node.scope)}
    behind = [node for node in whole.nodes if id(node) not in ahead]

    def carried(name: str) -> bool:
        return name not in given and id(producers[name]) in ahead

    residuals: dict[str, None] = {}
    again: list[Node] = []  # reshapes cost nothing: only what they reshape is handed on
    waiting = [name for node in behind for name in node.inputs if name and carried(name)]
    while waiting:
        name = waiting.pop(0)
        node = producers[name]
        if node.op != "Reshape":
            residuals[name] = None
        elif node not in again:
            again.insert(0, node)
            if carried(node.inputs[0]):
                waiting.append(node.inputs[0])
    first = whole.copy(f"forward_saved_{side}")
    first.nodes = [node for node in first.nodes if not _behind(node.scope)]
    first.outputs = [side, *(name for name in residuals if name != side)]
    first.prune()
    _drop_unused_inputs(first)
    second = whole.copy(f"backward_saved_{side}")
    place = {id(node): index for index, node in enumerate(whole.nodes)}
    chosen = sorted({id(n): n for n in [*again, *behind]}.values(), key=lambda n: place[id(n)])
    second.nodes = chosen
    second.inputs = [*second.inputs, *residuals]
    second.outputs = [name for name in second.outputs if name != side]
    second.prune()
    _drop_unused_inputs(second)
    return first, second


def _behind(scope: str) -> bool:
    return scope in ("backward", "accumulate", "outputs") or scope.endswith("/backward")


def loss(forward: Graph) -> Graph:
    """Loss and its gradient by both sides' embeddings."""
    graph = forward.copy("loss")
    graph.outputs = [LOSS]
    kept = [name for name in graph.inputs if name == TARGETS]
    graph.inputs = [IMAGE, TEXT, *kept]
    cut = {IMAGE, TEXT}
    graph.nodes = [node for node in graph.nodes if not cut.intersection(node.outputs)]
    graph.prune()
    simplify.before(graph)
    backward = Backward(graph, [IMAGE, TEXT], RULES)
    found = backward.run({LOSS: graph.constant(1.0)}, [IMAGE, TEXT])
    _publish(graph, {f"{side}_gradient": found[side] for side in (IMAGE, TEXT)})
    simplify.after(graph)
    return graph


def _one_sided(forward: Graph, side: str, name: str) -> Graph:
    graph = forward.copy(name)
    graph.outputs = [side]
    graph.prune()
    simplify.specialise(graph, {SIDES[side]: 0})
    _drop_unused_inputs(graph)
    return graph


def _reached(graph: Graph, parameters: Sequence[str]) -> list[str]:
    used = {name for node in graph.nodes for name in node.inputs}
    return [name for name in parameters if name in used]


def _drop_unused_inputs(graph: Graph) -> None:
    used = {name for node in graph.nodes for name in node.inputs}
    sizes = {name for dims in graph.extents.values() for name in _symbol_inputs(graph, dims)}
    graph.inputs = [name for name in graph.inputs if name in used or name in sizes]


def _symbol_inputs(graph: Graph, dims: Shape) -> list[str]:
    """The inputs that to_onnx may read symbols from: embeddings, and places of a rung's prompts."""
    wanted = {(symbol(name),) for dim in dims if isinstance(dim, Extent) for name, _ in dim.terms}
    embeddings = (f"{IMAGE}_embedding", f"{TEXT}_embedding")
    return [n for n in graph.inputs if n in embeddings or graph.shapes[n] in wanted]


def _publish(graph: Graph, results: Mapping[str, str]) -> None:
    """Make values outputs under the given names.

    A value that is an input, a constant or another output already gets an Identity: onnxruntime
    refuses an output that no node makes.
    """
    producers = graph.producers()
    taken = set(graph.outputs)
    for label, value in results.items():
        if value not in producers or value in taken:
            graph.scope = "outputs"
            value = graph.emit("Identity", [value], graph.shapes[value])
            producers = graph.producers()
        node = producers[value]
        graph.declare(label, graph.shapes[value], graph.types[value])
        node.outputs = [label if name == value else name for name in node.outputs]
        graph.rename(value, label)
        graph.outputs.append(label)
        taken.add(label)
        producers[label] = node


def check_aliases(graph: Graph, pairs: Mapping[str, str]) -> None:
    """Prove that each output may be written onto its paired input, in any execution order.

    That holds when every reader of the input is the node that makes the output or one of its
    ancestors: then no reader can still be waiting when the output is written.

    Raises:
        EdgeLadderError: naming the reader that could see the new value.
    """
    producers, consumers = graph.producers(), graph.consumers()
    for source, target in pairs.items():
        writer = producers[target]
        ancestors, stack = {id(writer)}, [writer]
        while stack:
            for name in stack.pop().inputs:
                node = producers.get(name)
                if node is not None and id(node) not in ancestors:
                    ancestors.add(id(node))
                    stack.append(node)
        for reader in consumers.get(source, []):
            if id(reader) not in ancestors:
                raise EdgeLadderError(
                    f"{target} cannot be written in place of {source}: node {reader.name!r} "
                    "may read it later",
                    where=graph.name,
                )


def peak_lines(
    graph: Graph, counts: Mapping[str, int] | None = None
) -> list[tuple[float, float, float]]:
    """Peak bytes of intermediate values as lines (fixed, per picture, per class).

    The peak at (B, C) is the maximum of fixed + B per_picture + C per_class over the lines: the
    upper envelope of what is alive at each node, outputs left out (the engine owns them).

    Args:
        graph: a training or encoding graph.
        counts: numbers for the symbols other than B and C.
    """
    last: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        for name in node.inputs:
            last[name] = place
    given = set(graph.inputs) | set(graph.constants) | set(graph.extents) | set(graph.outputs)

    def line(name: str) -> np.ndarray:
        points = [
            np.prod(evaluate(graph.shapes[name], {**(counts or {}), "B": b, "C": c}), dtype=float)
            for b, c in ((0, 0), (1, 0), (0, 1))
        ]
        size = np.dtype(graph.types[name]).itemsize
        return np.array([points[0], points[1] - points[0], points[2] - points[0]]) * size

    producers = graph.producers()
    live, total, lines = set[str](), np.zeros(3), []
    views: dict[str, str] = {}  # reshapes share their input's memory

    def root(name: str) -> str:
        node = producers.get(name)
        return root(node.inputs[0]) if node is not None and node.op == "Reshape" else name

    for name, place in list(last.items()):
        views[name] = root(name)
        last[views[name]] = max(last.get(views[name], 0), place)
    for place, node in enumerate(graph.nodes):
        for name in node.outputs:
            if name and name not in given and root(name) == name and name not in live:
                live.add(name)
                total = total + line(name)
        lines.append(total)
        for name in [n for n in live if last.get(n, -1) <= place]:
            live.remove(name)
            total = total - line(name)
    return _envelope(lines)


def residual_bytes(graph: Graph, counts: Mapping[str, int] | None = None) -> float:
    """Bytes of a forward_saved graph's outputs per picture or class; `counts` as `peak_lines`'."""
    total = 0.0
    for name in graph.outputs[1:]:
        sizes = [{**(counts or {}), "B": n, "C": n} for n in (0, 1)]
        at = [np.prod(evaluate(graph.shapes[name], given), dtype=float) for given in sizes]
        total += float(at[1] - at[0]) * np.dtype(graph.types[name]).itemsize
    return total


def _envelope(lines: Sequence[np.ndarray]) -> list[tuple[float, float, float]]:
    """The lines that are highest somewhere on a grid of batch and class counts."""
    table = np.unique(np.array(lines), axis=0)
    best = set()
    for b in (0, 1, 4, 16, 64, 256, 1024):
        for c in (0, 1, 10, 100, 1000, 10000):
            best.add(int(np.argmax(table @ np.array([1.0, b, c]))))
    return [(float(f), float(i), float(k)) for f, i, k in table[sorted(best)]]
