"""Which products of a frozen segment bear int8, found on a batch of calibration inputs.

A product behind a layer norm is smoothed first where that lowers its error: SmoothQuant (Xiao et
al., arXiv:2211.10438, eq. 4) divides the norm's channel j by

    s_j = max |x_j|^alpha / max |W_j|^(1 - alpha)

and multiplies row j of the weights by it, which changes nothing in real numbers and takes the
outliers of a few channels out of what is rounded. The norm is inside the block, so taps, which are
read between blocks, stay what they are. What a product then loses is measured: the error of its
output beside its own length. Products above the bound stay in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from edgeladder.core.manifest import ProductRecord
from edgeladder.host.compile.int8_products import Product, Writer, find_products, rounded
from edgeladder.host.compile.weights import quantise
from edgeladder.runtime.session import open_plain

ALPHA = 0.5  # SmoothQuant's own choice for most models
BOUND = 0.05  # of a product's output: above it, it stays in float32
_ROWS = 2048  # that errors are measured on; maxima are of all

Inputs = dict[str, np.ndarray]


@dataclass
class _Group:
    """Products that read the same rows."""

    products: list[Product]
    norm: onnx.NodeProto | None  # the layer norm that makes them, where nothing else reads it


def choose(model: onnx.ModelProto, given: Inputs, bound: float = BOUND) -> list[ProductRecord]:
    """Turn the products of a segment that bear it into int8, in place.

    Args:
        model: a segment in float32, weights inside.
        given: its inputs, (n, ..) each, as the calibration batch makes them.
        bound: of a product's relative error.

    Returns:
        One record a product, in the graph's order.
    """
    products = find_products(model)
    if not products:
        return []
    rows = _rows(model, given, {product.source for product in products})
    writer = Writer(model)
    records: dict[str, ProductRecord] = {}
    for group in _groups(model, products):
        source = group.products[0].source
        scales = _smoothing(model, group, rows[source])
        plain = [_error(model, item, rows[source], None) for item in group.products]
        smooth = [_error(model, item, rows[source], scales) for item in group.products]
        better = scales is not None and sum(smooth) < sum(plain)
        if better and scales is not None and group.norm is not None:
            _fold(model, group, scales)
        for item, error in zip(group.products, smooth if better else plain, strict=True):
            if error <= bound:
                writer.replace(item)
            records[item.weight] = ProductRecord(
                name=item.weight,
                arithmetic="int8" if error <= bound else "float32",
                error=round(error, 5),
                smoothed=better,
            )
    writer.finish()
    return [records[item.weight] for item in products]


def _rows(model: onnx.ModelProto, given: Inputs, names: set[str]) -> Inputs:
    """Values of tensors inside a model, as rows (n, K)."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    outputs = {item.name for item in wider.graph.output}
    wanted = sorted(names - set(given))
    for name in wanted:
        if name not in outputs:
            wider.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_plain(wider.SerializeToString())
    fed = {item.name: given[item.name] for item in session.get_inputs()}
    found = dict(zip(wanted, session.run(wanted, fed), strict=True)) if wanted else {}
    found |= {name: given[name] for name in names & set(given)}
    return {name: array.reshape(-1, array.shape[-1]) for name, array in found.items()}


def _groups(model: onnx.ModelProto, products: list[Product]) -> list[_Group]:
    """Products by what they read."""
    norms = {n.output[0]: n for n in model.graph.node if n.op_type == "LayerNormalization"}
    outside = {item.name for item in model.graph.output}
    groups: dict[str, _Group] = {}
    for product in products:
        group = groups.setdefault(product.source, _Group([], None))
        group.products.append(product)
    for source, group in groups.items():
        readers = [node for node in model.graph.node if source in node.input]
        alone = len(readers) == len(group.products) and source not in outside
        group.norm = norms.get(source) if alone else None
    return list(groups.values())


def _weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    found: np.ndarray = numpy_helper.to_array(tensor)
    return found


def _smoothing(model: onnx.ModelProto, group: _Group, rows: np.ndarray) -> np.ndarray | None:
    """SmoothQuant's s, (K,); None where there is no norm to fold it into."""
    if group.norm is None:
        return None
    activation = np.abs(rows).max(0).astype(np.float64)
    weights = np.max(
        [np.abs(_weight(model, item.weight)).max(1) for item in group.products], axis=0
    ).astype(np.float64)
    useful = (activation > 0) & (weights > 0)
    ratio = np.where(useful, activation, 1) ** ALPHA / np.where(useful, weights, 1) ** (1 - ALPHA)
    return np.where(useful, ratio, 1).astype(np.float32)


def _error(
    model: onnx.ModelProto, product: Product, rows: np.ndarray, scales: np.ndarray | None
) -> float:
    """|found - expected| / |expected| of a product's output, 2-norms over a sample of the rows."""
    weight, some = _weight(model, product.weight), rows[:: max(1, len(rows) // _ROWS)]
    expected = some @ weight
    if scales is not None:
        some, weight = some / scales, weight * scales[:, None]
    levels, steps = quantise(weight, 1)
    found = rounded(some, product.after_gelu) @ (levels.astype(np.float32) * steps)
    length = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / max(length, 1e-12)


def _fold(model: onnx.ModelProto, group: _Group, scales: np.ndarray) -> None:
    """Divide the layer norm's affine part by the scales, and multiply the weights' rows."""
    assert group.norm is not None
    graph = model.graph
    for place, name in enumerate(group.norm.input[1:3], 1):
        own = f"{group.norm.output[0]}/smooth/{place}"  # another norm may read the same constant
        graph.initializer.append(numpy_helper.from_array(_weight(model, name) / scales, own))
        group.norm.input[place] = own
        if not any(name in node.input for node in graph.node):
            graph.initializer.remove(next(t for t in graph.initializer if t.name == name))
    for item in group.products:
        tensor = next(t for t in graph.initializer if t.name == item.weight)
        turned = _weight(model, item.weight) * scales[:, None]
        tensor.CopyFrom(numpy_helper.from_array(turned, item.weight))
