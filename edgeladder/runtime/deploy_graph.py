"""One graph of a whole classifier: picture -> frozen tower -> ladder -> what is asked for.

The files of the bundle are joined as they are (`core.onnx_graph`); between them stand a few
standard operators. Class embeddings, parameters and a closed-form head are constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import ConfigError
from edgeladder.core.inference import Form
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT, UINT8, parse, text
from edgeladder.runtime.heads.closed_form import Blend, Gda
from edgeladder.runtime.heads.kernel import Kernel
from edgeladder.runtime.kept_prompts import kept_places
from edgeladder.runtime.logits import ClassEmbeddings, ClassLogits, Head
from edgeladder.runtime.resize_graph import resize

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.known import Known

Array = np.ndarray

PICTURE, PROBABILITIES, KNOWN = "picture", "probabilities", "known"
EMBEDDING, CLASS_EMBEDDINGS = "picture_embedding", "class_embeddings"
SQUARE = "pixels/square"  # (N, 3, S, S) float32, 0 to 255: what the tower sees, not yet normalised


def assemble(
    bundle: Bundle,
    parameters: Mapping[str, Array],
    classes: ClassEmbeddings,
    formula: ClassLogits,
    known: Known | None = None,
    form: Form = Form(),
) -> Graph:
    """The classifier's graph.

    Args:
        bundle: its image tower and ladder are joined in.
        parameters: the ladder's parameters and buffers by name.
        classes: embeddings of all of them.
        formula: what is written as operators; a ladder of weight 0 is left out.
        known: what tells a picture of no class, if the run has it.
        form: its output, and whether it resizes.

    Returns:
        Graph with input `picture` (N, S, S, 3) uint8, resized and cropped as the manifest says, or
        (N, H, W, 3) where it does that itself. Outputs are `probabilities` (N, C) float32 and,
        after it, `known` (N,) float32 where the run has it (the softmax is the last node); or
        `picture_embedding` (N, D) and `class_embeddings` (C, D) float32, at unit length.

    Raises:
        ConfigError: a head, or a way of resizing, that cannot be written.
    """
    manifest = bundle.manifest
    graph = Graph()
    size = manifest.preprocess.size
    sides: list[int | str] = ["height", "width"] if form.include_resize else [size, size]
    graph.declare(PICTURE, UINT8, ["N", *sides, 3], out=False)
    _pixels(graph, bundle, form)
    for number, segment in enumerate(manifest.image.segments):
        edge = {t.name: t.name for t in [*segment.inputs, *segment.outputs]}
        graph.join(bundle.path(segment.file), f"image{number}/", edge)
    norm = _norm(graph, manifest.image.embedding)
    graph.add("Div", [manifest.image.embedding, norm], "image_embedding")
    groups = _groups(graph, bundle)
    features = list(groups)
    if "image_embedding_pre" in manifest.ladder.image_inputs and manifest.image.embedding_pre:
        graph.add("Div", [manifest.image.embedding_pre, norm], "image_embedding_pre_scaled")
        features.append("image_embedding_pre_scaled")
    features.append("image_embedding")
    if form.embeds:
        _embeddings(graph, bundle, parameters, classes)
        return graph
    if known is not None:
        _known(graph, known, features)
    graph.add(
        "Softmax",
        [_logits(graph, bundle, parameters, features, classes, formula)],
        PROBABILITIES,
        {"axis": -1},
    )
    graph.declare(PROBABILITIES, FLOAT, ["N", len(classes.tuned)], out=True)
    if known is not None:
        graph.declare(KNOWN, FLOAT, ["N"], out=True)
    return graph


def _embeddings(
    graph: Graph, bundle: Bundle, parameters: Mapping[str, Array], classes: ClassEmbeddings
) -> None:
    """The ladder's embeddings of pictures, and of all classes, as outputs."""
    vectors = graph.constant("classes/vectors", np.asarray(classes.tuned, np.float32))
    graph.add("Identity", [_ladder(graph, bundle, parameters)], EMBEDDING)
    graph.add("Identity", [vectors], CLASS_EMBEDDINGS)
    count, width = classes.tuned.shape
    graph.declare(EMBEDDING, FLOAT, ["N", width], out=True)
    graph.declare(CLASS_EMBEDDINGS, FLOAT, [count, width], out=True)


def logits_of(graph: Graph) -> str:
    """The tensor (N, C) that the probabilities of an assembled graph are the softmax of."""
    return input_of(graph.nodes[-1])


def input_of(node: bytes) -> str:
    """The first input of an encoded node."""
    return next(text(value) for number, value in parse(node) if number == 1)


def _logits(
    graph: Graph,
    bundle: Bundle,
    parameters: Mapping[str, Array],
    features: Sequence[str],
    classes: ClassEmbeddings,
    formula: ClassLogits,
) -> str:
    """`ClassLogits.classify` as operators."""
    tuned = ""
    if formula.head is None or formula.ladder_weight or formula.head_columns is not None:
        encoded = _ladder(graph, bundle, parameters)
        tuned = _similarity(graph, encoded, classes.tuned, formula, "tuned")
    if formula.head is None:
        return _over(graph, tuned, formula.temperature)
    zero_shot = _similarity(graph, "image_embedding", classes.zero_shot[:], formula, "zero_shot")
    own = tuned
    if formula.head_columns is not None:
        place = graph.constant("head/columns", np.array(formula.head_columns, np.int64))
        zero_shot, own = (
            graph.add("Gather", [rows, place], attributes={"axis": 1})
            for rows in (zero_shot, tuned)
        )
    beside = _head(graph, formula.head, features, zero_shot)
    weight = graph.constant("head/eta", np.array(formula.head_weight, np.float32))
    both = graph.add("Mul", [beside, weight])
    if formula.ladder_weight:
        both = graph.add("Add", [_times(graph, own, formula.ladder_weight), both])
    both = _over(graph, both, formula.temperature)
    if formula.head_columns is None:
        return both
    alone, own = (
        _over(graph, rows, formula.ladder_temperature, f"ladder/temperature/{name}")
        for name, rows in (("all", tuned), ("own", own))
    )
    return _among_others(graph, alone, own, both, formula.head_columns, len(classes.tuned))


def _among_others(
    graph: Graph, tuned: str, own: str, both: str, columns: Sequence[int], count: int
) -> str:
    """The head's classes in its order at the ladder's height, the others as the ladder has them."""
    last = graph.constant("axes/last", np.array([-1], np.int64))
    height, best = (graph.add("ReduceMax", [rows, last]) for rows in (own, both))
    moved = graph.add("Add", [graph.add("Sub", [both, best]), height])
    joined = graph.add("Concat", [moved, tuned], attributes={"axis": 1})
    order = len(columns) + np.arange(count, dtype=np.int64)
    order[list(columns)] = np.arange(len(columns))
    place = graph.constant("head/order", order)
    return graph.add("Gather", [joined, place], attributes={"axis": 1})


def _times(graph: Graph, logits: str, weight: float) -> str:
    if weight == 1.0:
        return logits
    return graph.add("Mul", [logits, graph.constant("ladder/weight", np.array(weight, np.float32))])


def _over(graph: Graph, logits: str, temperature: float, name: str = "temperature") -> str:
    if temperature == 1.0:
        return logits
    value = np.array(temperature, np.float32)
    return graph.add("Div", [logits, graph.constant(name, value)])


def _pixels(graph: Graph, bundle: Bundle, form: Form) -> None:
    """uint8 pixels, channels last -> what the tower's first segment reads."""
    preprocess = bundle.manifest.preprocess
    name = bundle.manifest.image.segments[0].inputs[0].name
    planes = graph.add("Transpose", [PICTURE], attributes={"perm": [0, 3, 1, 2]})
    if form.include_resize:
        planes = resize(graph, planes, preprocess, portable=form.portable)
    wide = graph.add("Cast", [planes], SQUARE, {"to": FLOAT})
    share = graph.add("Div", [wide, graph.constant("pixels/255", np.array(255, np.float32))])
    mean = np.asarray(preprocess.mean, np.float32).reshape(3, 1, 1)
    deviation = np.asarray(preprocess.std, np.float32).reshape(3, 1, 1)
    moved = graph.add("Sub", [share, graph.constant("pixels/mean", mean)])
    graph.add("Div", [moved, graph.constant("pixels/deviation", deviation)], name)


def _norm(graph: Graph, name: str) -> str:
    """Length of each row, (N, 1)."""
    axes = graph.constant("axes/last", np.array([-1], np.int64))
    squares = graph.add("Mul", [name, name])
    return graph.add("Sqrt", [graph.add("ReduceSum", [squares, axes], attributes={"keepdims": 1})])


def _groups(graph: Graph, bundle: Bundle) -> list[str]:
    """Stack the taps as the ladder reads them, (L, T, N, W) per group; taps in group order."""
    first = graph.constant("axes/first", np.array([0], np.int64))
    taps: list[str] = []
    for group in bundle.manifest.ladder.groups:
        if group.side != "image":
            continue
        lifted = []
        for index in group.taps:
            name = bundle.manifest.image.taps[index].name
            taps.append(name)
            turned = graph.add("Transpose", [name], attributes={"perm": [1, 0, 2]})
            lifted.append(graph.add("Unsqueeze", [turned, first]))
        graph.add("Concat", lifted, group.input, {"axis": 0})
    return taps


def _ladder(graph: Graph, bundle: Bundle, parameters: Mapping[str, Array]) -> str:
    """The ladder's picture encoder, its parameters as constants."""
    record = bundle.manifest.ladder.graphs["encode_image"]
    names = {name: name for name in record.inputs}
    values = {**parameters, **kept_places(parameters, bundle.manifest.ladder.prompts)}
    for name in record.inputs:
        if name in values:
            names[name] = graph.constant(f"parameter/{name}", values[name])
    if "image_embedding_pre" in names:
        names["image_embedding_pre"] = "image_embedding_pre_scaled"
    names[record.outputs[0]] = "tuned"
    graph.join(bundle.path(record.file), "ladder/", names)
    return "tuned"


def _similarity(graph: Graph, rows: str, classes: Array, formula: ClassLogits, label: str) -> str:
    """`ClassLogits.similarity` with constant class embeddings."""
    weight = np.ascontiguousarray((formula.scale * classes).T.astype(np.float32))
    product = graph.add("MatMul", [rows, graph.constant(f"classes/{label}", weight)])
    if not formula.bias:
        return product
    bias = graph.constant(f"classes/{label}/bias", np.array(formula.bias, np.float32))
    return graph.add("Add", [product, bias])


def _head(
    graph: Graph, head: Head, features: Sequence[str], zero_shot: str, label: str = "head"
) -> str:
    """A closed-form head's logits, as its `logits` computes them."""

    def fixed(name: str, value: Array | float) -> str:
        return graph.constant(f"{label}/{name}", np.asarray(value, np.float32))

    if isinstance(head, Blend):
        terms = [
            _head(graph, part, features, zero_shot, f"{label}{place}")
            for place, part in enumerate(head.heads)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = graph.add("Add", [total, term])
        return graph.add("Mul", [total, fixed("share", 1.0 / len(terms))])
    flat = graph.constant("head/flat", np.array([0, -1], np.int64))
    rows = [graph.add("Reshape", [name, flat]) for name in features]
    if isinstance(head, Gda):
        unit = [_unit(graph, rows[place]) for place in head.reads]
        joined = graph.add("Concat", unit, attributes={"axis": 1}) if len(unit) > 1 else unit[0]
        term = graph.add("MatMul", [joined, fixed("matrix", head.matrix)])
        term = graph.add("Add", [term, fixed("bias", head.bias)])
        prior, weight = head.prior, head.weight
    elif isinstance(head, Kernel):
        term = graph.add("MatMul", [_near(graph, head, rows, label), fixed("alpha", head.alpha)])
        prior, weight = head.choice.prior, head.choice.temperature
    else:
        raise ConfigError(
            f"a head of kind {type(head).__name__} cannot be written as a graph",
            where="deploy",
            remedy="train with head.kind gda, proker, kernel or blend",
        )
    term = graph.add("Mul", [term, fixed("weight", weight)])
    return graph.add("Add", [term, graph.add("Mul", [zero_shot, fixed("prior", prior)])])


def _known(graph: Graph, known: Known, features: Sequence[str]) -> None:
    """`Known.scores` as operators: the mean of the largest cosines."""
    flat = graph.constant("head/flat", np.array([0, -1], np.int64))
    unit = [
        _unit(graph, graph.add("Reshape", [features[place], flat])) for place in known.record.reads
    ]
    joined = graph.add("Concat", unit, attributes={"axis": 1}) if len(unit) > 1 else unit[0]
    share = np.float32(1 / np.sqrt(len(unit)))  # side by side they are as long as this is short
    rows = graph.constant("known/support", (share * known.support).T)
    nearest = np.array([min(known.record.neighbours, len(known.support))], np.int64)
    likeness = graph.add("MatMul", [joined, rows])
    largest = graph.add("TopK", [likeness, graph.constant("known/count", nearest)], outputs=2)
    axis = graph.constant("axes/last", np.array([-1], np.int64))
    total = graph.add("ReduceSum", [largest, axis], attributes={"keepdims": 0})
    divisor = graph.constant("known/divisor", nearest.astype(np.float32)[0])
    graph.add("Div", [total, divisor], KNOWN)


def _near(graph: Graph, head: Kernel, rows: Sequence[str], label: str) -> str:
    """The kernel of pictures and support set, (N, n)."""

    def fixed(name: str, value: Array | float) -> str:
        return graph.constant(f"{label}/{name}", np.asarray(value, np.float32))

    exponent = ""
    shares = head.choice.weights
    for number, (name, share) in enumerate(zip(rows[-len(shares) :], shares, strict=True)):
        if share <= 0:
            continue
        moved = graph.add(
            "Sub", [_unit(graph, name), fixed(f"centre{number}", head.centres[number])]
        )
        support = fixed(f"support{number}", head.support[number].T)
        # unit rows: |a - b|^2 = 2 - 2 a.b
        likeness = graph.add("MatMul", [_unit(graph, moved), support])
        near = graph.add("Sub", [likeness, fixed("one", 1.0)])
        part = graph.add("Mul", [near, fixed(f"scale{number}", 2.0 * share / head.scales[number])])
        exponent = graph.add("Add", [exponent, part]) if exponent else part
    return graph.add("Exp", [exponent])


def _unit(graph: Graph, rows: str) -> str:
    """Rows at unit length."""
    return graph.add("Div", [rows, _norm(graph, rows)])
