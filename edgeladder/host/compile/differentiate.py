"""The reverse pass over a graph: which gradients are needed, in which order, and their sums.

What one operator's gradient is, the rules of vjp.py tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile.extent import Shape
from edgeladder.host.compile.graph import Graph, Node

Gradient = str | None
Rule = Callable[["Backward", Node, list[Gradient]], list[Gradient]]

_AGAIN = "again"


class Backward:
    """One backward pass being written at the end of a graph."""

    def __init__(
        self,
        graph: Graph,
        wanted: Sequence[str],
        rules: Mapping[str, Rule],
        *,
        recompute: bool = False,
    ):
        self.graph, self.rules = graph, rules
        self.forward = list(graph.nodes)
        self.producers = graph.producers()
        self.alive = _depends_on(self.forward, set(wanted))
        self.recompute = recompute
        self._again: dict[str, str] = {}  # forward value -> its recomputed twin
        self._scopes: set[str] = set()
        self._ones: dict[Shape, str] = {}

    # -- what rules use ---------------------------------------------------------------------

    def shape(self, value: str) -> Shape:
        """The shape of a value."""
        return self.graph.shapes[value]

    def needs(self, value: str) -> bool:
        """Whether a gradient of the value is wanted."""
        return value in self.alive

    def saved(self, value: str) -> str:
        """A forward value, computed again where that is cheap or asked for."""
        if value in self._again:
            return self._again[value]
        node = self.producers.get(value)
        if node is not None and node.op == "QuickGelu":
            self.activate(node)
            return self._again[value]
        return value

    def activate(self, node: Node) -> str:
        """SiLU again: its value dies in the forward pass; returns the name of the sigmoid."""
        value = node.outputs[0]
        key = f"{value}/sigmoid"
        if key not in self._again:
            x = self.saved(node.inputs[0])
            shape = self.shape(value)
            sigmoid = self.emit("Sigmoid", [x], shape)
            self._again[key] = sigmoid
            self._again[value] = self.emit("Mul", [x, sigmoid], shape, hint="silu")
        return self._again[key]

    def emit(self, op: str, inputs: Sequence[str], shape: Shape, **more: Any) -> str:
        """One operator of the backward pass."""
        return self.graph.emit(op, inputs, shape, **more)

    def binary(self, op: str, left: str, right: str) -> str:
        """Add, Sub, Mul or Div with broadcasting."""
        return self.emit(op, [left, right], broadcast(self.shape(left), self.shape(right)))

    def number(self, value: float) -> str:
        """A scalar constant."""
        return self.graph.constant(value)

    def reduce(self, op: str, value: str, axes: Sequence[int], keep: bool) -> str:
        """ReduceSum or ReduceMean."""
        shape = self.shape(value)
        rank = len(shape)
        chosen = [axis % rank for axis in axes]
        left = tuple(
            1 if i in chosen else dim for i, dim in enumerate(shape) if keep or i not in chosen
        )
        named = self.graph.constant(chosen, "int64", "axes")
        return self.emit(op, [value, named], left, keepdims=int(keep))

    def unbroadcast(self, gradient: str, shape: Shape) -> str:
        """Sum a gradient over the axes along which a value of `shape` was broadcast."""
        have = self.shape(gradient)
        if have == tuple(shape):
            return gradient
        if len(have) == 2 and tuple(shape) in ((have[1],), (1, have[1])) and have[0] != 1:
            return self.graph.reshape(self.column_sums(gradient), shape)
        extra = len(have) - len(shape)
        axes = list(range(extra))
        axes += [i + extra for i, dim in enumerate(shape) if dim == 1 and have[i + extra] != 1]
        summed = self.reduce("ReduceSum", gradient, axes, keep=True) if axes else gradient
        return self.graph.reshape(summed, shape)

    def column_sums(self, value: str) -> str:
        """(R, d) -> (1, d), as a product with ones.

        onnxruntime's ReduceSum over rows is three to five times slower, most of all on two threads.
        """
        rows, columns = self.shape(value)
        if (1, rows) not in self._ones:
            self._ones[1, rows] = ones(self, (1, rows))
        return self.emit("Gemm", [self._ones[1, rows], value], (1, columns))

    # -- the pass ---------------------------------------------------------------------------

    def run(self, seeds: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
        """Pull the gradients of `seeds` (value -> gradient) back to `wanted`."""
        gradients: dict[str, list[str]] = {value: [g] for value, g in seeds.items()}
        for node in reversed(self.forward):
            if not any(o in gradients for o in node.outputs):
                continue
            if not any(name in self.alive for name in node.inputs):
                continue
            self._enter(node.scope)
            given = [self._total(gradients, output) for output in node.outputs]
            rule = self.rules.get(node.op)
            if rule is None:
                raise EdgeLadderError(
                    f"no vector-Jacobian product for operator {node.op!r}",
                    where=f"node {node.name!r}",
                    remedy="write the ladder with other operators or add a rule to vjp.py",
                )
            for name, gradient in zip(node.inputs, rule(self, node, given), strict=False):
                if gradient is not None and name in self.alive:
                    gradients.setdefault(name, []).append(gradient)
        found = {}
        for name in wanted:
            total = self._total(gradients, name)
            if total is None:
                raise EdgeLadderError(
                    f"the loss does not depend on parameter {name!r}",
                    where=self.graph.name,
                    remedy="drop the parameter from the ladder or use it",
                )
            found[name] = total
        return found

    def _total(self, gradients: dict[str, list[str]], value: str) -> str | None:
        parts = gradients.get(value)
        if not parts:
            return None
        while len(parts) > 1:
            parts[:2] = [self.binary("Add", parts[0], parts[1])]
        return parts[0]

    def _enter(self, scope: str) -> None:
        """Before the first gradient of a rung: compute the rung again from its inputs."""
        self.graph.scope = f"{scope}/backward" if scope else "backward"
        if not self.recompute or "rungs." not in scope or scope in self._scopes:
            return
        self._scopes.add(scope)
        self.graph.scope = f"{scope}/{_AGAIN}"
        for node in self.forward:
            if node.scope != scope or node.op == "QuickGelu":
                continue
            inputs = [self.saved(name) for name in node.inputs]
            outputs = [
                self.graph.declare(
                    self.graph.fresh(f"{output}/{_AGAIN}"),
                    self.graph.shapes[output],
                    self.graph.types[output],
                )
                for output in node.outputs
            ]
            self.graph.nodes.append(
                Node(
                    node.op,
                    inputs,
                    outputs,
                    dict(node.attributes),
                    node.domain,
                    self.graph.scope,
                    f"{self.graph.scope}/{node.op.lower()}",
                )
            )
            self._again.update(zip(node.outputs, outputs, strict=True))
        self.graph.scope = f"{scope}/backward"


def _depends_on(nodes: Sequence[Node], values: set[str]) -> set[str]:
    """Values that depend on `values` with a gradient."""
    alive = set(values)
    for node in nodes:
        stops = node.op in ("Greater", "Cast") or is_stop(node)
        if not stops and any(name in alive for name in node.inputs):
            alive.update(node.outputs)
    return alive


def is_stop(node: Node) -> bool:
    """Whether a node is torch's `detach`."""
    return node.op == "Identity" and "stop_gradient" in node.outputs[0]


def broadcast(left: Shape, right: Shape) -> Shape:
    """The shape of an element-wise operator's result."""
    rank = max(len(left), len(right))
    a, b = (1,) * (rank - len(left)) + tuple(left), (1,) * (rank - len(right)) + tuple(right)
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def zeros(b: Backward, shape: Shape) -> str:
    """Zeros of a shape, expanded where it is symbolic."""
    return b.emit("Expand", [b.number(0.0), b.graph.extent(shape)], shape, hint="zeros")


def ones(b: Backward, shape: Shape) -> str:
    """Ones of a shape, expanded where it is symbolic."""
    return b.emit("Expand", [b.number(1.0), b.graph.extent(shape)], shape, hint="ones")
