"""Matrix products of a frozen segment in int8, written into its graph.

Of y = x W, x (rows, K) and W (K, M), with Q() rounding to the nearest whole number, half to even:

    s_r = max_k |x_rk| / 127,  a = Q(x / s) + 128      uint8, a scale for every row (token)
    t_m = max_k |W_km| / 127,  B = Q(W / t)            int8, a scale for every output channel
    y_rm ~ s_r t_m sum_k (a_rk - 128) B_km             summed in int32: exact, and everywhere alike

A scale per row, not per tensor: what a picture gives depends on no other in its batch. Behind a
GELU, whose values are never below -0.1701, the zero point is 32 instead of 128 and steps are nearly
half as wide: s_r = max(max_k x_rk / 223, 0.1701 / 32).

Written in operators that onnxruntime has had since 1.8. `MatMulIntegerToFloat` is its own; with a
scale of one for the left side it multiplies by t as it stores, and s follows in a product of its
own. `runtime.portable_graph` writes it in the standard's operators.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeladder.host.compile.weights import quantise

CONTRIB = "com.microsoft"
LEVELS = 127  # of a symmetric byte
GELU_LEAST = 0.1701  # none is below minus this: erf's -0.16998, tanh's -0.17005, quick's -0.1

INSIDE, ROWS = "/int8/", "/rows"  # in the names of what an int8 product is made of
_MIDDLE, _GELU_ZERO = 128, 32  # zero points
_LEAST_ELEMENTS = 1024  # of a weight: smaller products gain nothing


@dataclass
class Product:
    """A matrix product with a constant right side."""

    node: onnx.NodeProto
    source: str  # x
    weight: str
    dims: list[int]  # of x, behind its batch
    after_gelu: bool


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Products (N, .., K) x (K, M) whose weights nothing else reads, in the graph's order.

    Those of two axes are left out: they are the embeddings' own, a row a picture.
    """
    graph = model.graph
    weights = {t.name: list(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    shapes = _shapes(model)
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    makers = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type != "MatMul" or len(weights.get(node.input[1], [])) != 2:
            continue
        source, weight = node.input
        dims = shapes.get(source, [])
        if source in weights or len(dims) < 3 or not all(dims[1:]) or uses[weight] > 1:
            continue
        if np.prod(weights[weight]) >= _LEAST_ELEMENTS:
            found.append(Product(node, source, weight, dims[1:], _is_gelu(source, makers)))
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Known dimensions of every tensor; 0 where one is not."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in [*inferred.input, *inferred.value_info, *inferred.output]
    }


def _is_gelu(name: str, makers: dict[str, onnx.NodeProto]) -> bool:
    """Whether a tensor is x (1 + erf or tanh ..) / 2, or x sigmoid(1.702 x), by its nodes."""

    def made_by(tensor: str, *operators: str) -> onnx.NodeProto | None:
        node = makers.get(tensor)
        return node if node is not None and node.op_type in operators else None

    if made_by(name, "Gelu", "QuickGelu"):
        return True
    product = made_by(name, "Mul")
    if product is None:
        return False
    for value, gate in (tuple(product.input), tuple(product.input)[::-1]):
        sigmoid, half = made_by(gate, "Sigmoid"), made_by(value, "Mul")
        if sigmoid is not None:
            scaled = made_by(sigmoid.input[0], "Mul")
            if scaled is not None and value in scaled.input:
                return True
        if half is not None:
            for shifted in map(makers.get, half.input):
                if shifted is not None and shifted.op_type == "Add":
                    curves = (made_by(part, "Erf", "Tanh") for part in shifted.input)
                    if any(curve is not None for curve in curves):
                        return True
    return False


def rounded(rows: np.ndarray, after_gelu: bool) -> np.ndarray:
    """What the int8 product sees of (n, K) rows: rounded to their levels, in float32."""
    if after_gelu:
        scale = np.maximum(rows.max(1, keepdims=True) / (255 - _GELU_ZERO), GELU_LEAST / _GELU_ZERO)
    else:
        scale = np.abs(rows).max(1, keepdims=True) / LEVELS
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    found: np.ndarray = np.rint(rows / scale) * scale
    return found


@dataclass
class Writer:
    """Replaces products of one graph; rows that several of them read are rounded once."""

    model: onnx.ModelProto
    _nodes: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)  # before a product's
    _rounded: dict[tuple[str, bool], tuple[str, str]] = field(default_factory=dict)
    _constants: set[str] = field(default_factory=set)

    def replace(self, product: Product) -> None:
        """Let a product be computed in int8; `finish` puts the nodes in their places."""
        output, name = product.node.output[0], product.weight
        nodes: list[onnx.NodeProto] = []
        levels, scale = self._rows(product, nodes)
        tensor = next(t for t in self.model.graph.initializer if t.name == name)
        values, scales = quantise(numpy_helper.to_array(tensor), 1)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        zero = self._zero(product.after_gelu)
        one, columns = self._constant("int8/one", np.float32(1)), f"{name}/scale"
        self._constant(columns, scales)
        nodes.append(
            helper.make_node(
                "MatMulIntegerToFloat",
                [levels, name, one, columns, zero],
                [f"{output}/columns"],
                f"{output}/int8",
                domain=CONTRIB,
            )
        )
        nodes.append(helper.make_node("Mul", [f"{output}/columns", scale], [f"{output}{ROWS}"]))
        shape = np.array([-1, *product.dims[:-1], values.shape[1]], np.int64)
        shape_name = self._constant(f"int8/shape/{'x'.join(map(str, shape[1:]))}", shape)
        nodes.append(helper.make_node("Reshape", [f"{output}{ROWS}", shape_name], [output]))
        self._nodes[output] = nodes

    def _rows(self, product: Product, nodes: list[onnx.NodeProto]) -> tuple[str, str]:
        """Rows as bytes (n, K), and their scales (n, 1)."""
        key = product.source, product.after_gelu
        if key in self._rounded:
            return self._rounded[key]
        start, width = f"{product.source}{INSIDE}", product.dims[-1]
        flat, top, scale = f"{start}flat", f"{start}top", f"{start}scale"
        flat_shape = self._constant(f"int8/flat/{width}", np.array([-1, width], np.int64))
        last = self._constant("int8/last", np.array([1], np.int64))
        every = self._constant("int8/every", np.array([-1], np.int64))
        zero = self._zero(product.after_gelu)

        def add(operator: str, inputs: list[str], output: str, **attributes: int) -> str:
            nodes.append(helper.make_node(operator, inputs, [output], **attributes))
            return output

        add("Reshape", [product.source, flat_shape], flat)
        size = flat if product.after_gelu else add("Abs", [flat], f"{start}size")
        add("ReduceMax", [size, last], top, keepdims=1)
        if product.after_gelu:
            step = self._constant("int8/gelu_step", np.float32(1 / (255 - _GELU_ZERO)))
            least = self._constant("int8/gelu_least", np.float32(GELU_LEAST / _GELU_ZERO))
            add("Max", [add("Mul", [top, step], f"{start}step"), least], scale)
        else:
            add("Mul", [top, self._constant("int8/step", np.float32(1 / LEVELS))], scale)
        row = add("Reshape", [scale, every], f"{start}row")
        zeros = add("Expand", [zero, add("Shape", [row], f"{start}count")], f"{start}zeros")
        levels = add("QuantizeLinear", [flat, row, zeros], f"{start}levels", axis=0)
        self._rounded[key] = levels, scale
        return levels, scale

    def _zero(self, after_gelu: bool) -> str:
        value = _GELU_ZERO if after_gelu else _MIDDLE
        return self._constant(f"int8/zero/{value}", np.uint8(value))

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        if name not in self._constants:
            self._constants.add(name)
            tensor = numpy_helper.from_array(np.asarray(value), name)
            self.model.graph.initializer.append(tensor)
        return name

    def finish(self) -> None:
        """Write the graph with the replaced products in their places."""
        if not self._nodes:
            return
        graph = self.model.graph
        nodes = []
        for node in graph.node:
            nodes += self._nodes.get(node.output[0], [node])
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]  # what they said of the products' insides is gone
        if all(item.domain != CONTRIB for item in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
