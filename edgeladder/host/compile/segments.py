"""Frozen towers -> ONNX segments that chain by tensor name, weights as external data.

Pieces whose operators all have a rule of ours are lowered with their weights as inputs: blocks of a
transformer are alike, so one graph serves them all and only the weights differ, and weights lie in
the file as they are used, so that they are mapped and not copied. Anything else goes through
torch's exporter.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.manifest import SegmentRecord, TapRecord, TensorRecord, TowerRecord
from edgeladder.core.records import compact_json, to_json
from edgeladder.host.compile import forward_towers  # noqa: F401  (registers its rules)
from edgeladder.host.compile.forward import lower
from edgeladder.host.compile.fuse_attention import fuse_attention
from edgeladder.host.compile.int8_choice import choose
from edgeladder.host.compile.segment_memory import peak_bytes
from edgeladder.host.compile.weights import compress
from edgeladder.host.model.backbone import Backbone
from edgeladder.host.model.frozen_tower import Piece
from edgeladder.runtime.session import open_plain

OPSET = 18
IR_VERSION = 8
_TIMES_SMALLER = {"fp32": 1, "fp16": 2, "int8-weights": 4, "int8": 1}  # convolutions
_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph, where shape inference sees them


@dataclass
class Template:
    """A piece's graph, to be filled with the weights of any piece of the same structure."""

    model: onnx.ModelProto
    weights: dict[str, tuple[str, bool]]  # initializer -> parameter or buffer, transposed?


def write_segments(
    backbone: Backbone,
    side: str,
    taps: list[TapRecord],
    config: TapConfig,
    folder: Path,
    *,
    dtype: str = "fp32",
    calibration: torch.Tensor | None = None,
    progress: Callable[[str], None] = lambda note: None,
) -> TowerRecord:
    """Write a tower's segments below `folder/backbone/<side>/`.

    Args:
        dtype: `fp32`, `int8` arithmetic where it is bearable, or `fp16` or `int8-weights` on disk.
        calibration: for `int8`, a batch (n, ..) of what the tower reads.
        progress: told each piece's name.

    Raises:
        EdgeLadderError: torch cannot export a piece.
    """
    tower = backbone.tower(side)
    target = folder / "backbone" / side
    target.mkdir(parents=True)
    digest = hashlib.sha256(json.dumps([dtype, to_json(config)], sort_keys=True).encode())
    digest.update(compact_json(backbone.preprocess).encode() if side == "image" else b"text")
    templates: dict[str, Template] = {}
    pieces = tower.pieces(taps, config)
    values: dict[str, torch.Tensor] = {tower.source: tower.sample()}
    seen = {} if calibration is None else {tower.source: calibration}
    segments = []
    for number, piece in enumerate(pieces):
        label = _label(number, len(pieces))
        progress(f"{side} {label}")
        inputs = [values[name] for name in piece.inputs]
        with torch.no_grad():
            results = piece(*inputs)
        values.update(zip(piece.outputs, results, strict=True))
        model = _export(piece, inputs, templates, f"{side} {label}")
        _rename(model, piece)
        for tensor in model.graph.initializer:
            digest.update(tensor.raw_data)
        products = choose(model, {n: seen[n].numpy() for n in piece.inputs}) if seen else []
        if products:
            fuse_attention(model)
        seen = _passed_on(piece, pieces[number + 1 :], seen)
        compress(model, dtype)
        file = f"backbone/{side}/{label}.onnx"
        weight_bytes = _save(model, folder / file)
        record = _segment(file, piece, values, weight_bytes, dtype)
        peak = peak_bytes(model, values, piece)
        segments.append(replace(record, activation_bytes=peak, products=products))
    outputs = {name for piece in pieces for name in piece.outputs}
    return TowerRecord(
        segments=segments,
        taps=taps,
        embedding="embedding",
        embedding_pre="embedding_pre" if "embedding_pre" in outputs else None,
        digest=digest.hexdigest(),
    )


def _segment(
    file: str, piece: Piece, values: dict[str, torch.Tensor], weight_bytes: int, dtype: str
) -> SegmentRecord:
    """What a piece's file is, its activations apart."""
    return SegmentRecord(
        file=file,
        inputs=[_record(name, values[name]) for name in piece.inputs],
        outputs=[_record(name, values[name]) for name in piece.outputs],
        weight_bytes=weight_bytes,
        float_bytes=_TIMES_SMALLER[dtype] * weight_bytes,
        activation_bytes=0,
    )


def _passed_on(
    piece: Piece, later: list[Piece], seen: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the calibration batch is after a piece, as far as later ones read it."""
    if not seen:
        return seen
    with torch.no_grad():
        results = piece(*[seen[name] for name in piece.inputs])
    after = seen | dict(zip(piece.outputs, results, strict=True))
    read = {name for other in later for name in other.inputs}
    return {name: value for name, value in after.items() if name in read}


def _label(number: int, count: int) -> str:
    if count == 1:
        return "00_tower"
    role = "stem" if number == 0 else "tail" if number == count - 1 else "block"
    return f"{number:02d}_{role}"


def _record(name: str, value: torch.Tensor) -> TensorRecord:
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorRecord(name=name, shape=list(value.shape[1:]), dtype=dtype)


def _export(
    piece: Piece, inputs: list[torch.Tensor], templates: dict[str, Template], label: str
) -> onnx.ModelProto:
    """The piece's graph: ours where every operator has a rule, else torch's exporter's."""
    state = {
        name: value.detach().numpy()
        for name, value in piece.named_parameters(remove_duplicate=False)
    }
    state |= {name: value.numpy() for name, value in piece.named_buffers(remove_duplicate=False)}
    signature = json.dumps(
        [
            str(piece.body),
            [[name, list(value.shape)] for name, value in state.items()],
            [list(value.shape) for value in inputs],
        ]
    )
    if signature not in templates:
        try:
            templates[signature] = _lower(piece, inputs, label)
        except EdgeLadderError:
            return _trace(piece, inputs, label)
    template = templates[signature]
    model = onnx.ModelProto()
    model.CopyFrom(template.model)
    for name, (source, turned) in template.weights.items():
        value = state[source].T if turned else state[source]
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return model


def _lower(piece: Piece, inputs: list[torch.Tensor], label: str) -> Template:
    """Our own rules; weights become inputs first, so the graph fits every piece alike.

    Raises:
        EdgeLadderError: an operator without a rule.
    """
    batch = torch.export.Dim("N", min=2, max=1 << 16)
    names = [f"input/{index}" for index in range(len(inputs))]
    outputs = [f"output/{index}" for index in range(len(piece.outputs))]
    with torch.no_grad():
        graph = lower(
            piece.eval(),
            inputs,
            (tuple({0: batch} for _ in inputs),),
            names,
            outputs,
            label,
        )
    weights = {name: (name, False) for name in graph.inputs if name not in names}
    for node in list(graph.nodes):
        if node.op == "Transpose" and node.inputs[0] in weights:
            # stored the way it is used: a product that onnxruntime turns at load is in memory twice
            turned = f"{node.inputs[0]}/T"
            weights[turned] = (node.inputs[0], True)
            graph.declare(turned, graph.shapes[node.outputs[0]])
            graph.rename(node.outputs[0], turned)
            graph.nodes.remove(node)
    used = {name for node in graph.nodes for name in node.inputs}
    weights = {name: source for name, source in weights.items() if name in used}
    graph.inputs = names
    model = graph.to_onnx()
    return Template(model, weights)


def _trace(piece: Piece, inputs: list[torch.Tensor], label: str) -> onnx.ModelProto:
    """torch's exporter, batch dynamic."""
    batch = torch.export.Dim("N", min=1, max=1 << 16)
    torch.backends.mha.set_fastpath_enabled(False)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                piece.eval(),
                tuple(inputs),
                dynamo=True,
                optimize=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            )
    except Exception as error:
        raise EdgeLadderError(
            f"torch cannot export this part of the model: {str(error).splitlines()[0][:300]}",
            where=label,
            remedy="report the model's name; another model of the same family may work",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    return model


def _rename(model: onnx.ModelProto, piece: Piece) -> None:
    """Inputs and outputs by the chain's names; shapes of intermediates are not needed on disk."""
    graph = model.graph
    names = dict(zip([i.name for i in graph.input], piece.inputs, strict=True))
    names.update(zip([o.name for o in graph.output], piece.outputs, strict=True))
    clash = {n for node in graph.node for n in node.output} & (set(names.values()) - set(names))
    names.update({name: f"{name}/inner" for name in clash})
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for info in [*graph.input, *graph.output, *graph.value_info]:
        info.name = names.get(info.name, info.name)
        info.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    model.ClearField("metadata_props")
    graph.ClearField("metadata_props")
    for info in [*graph.input, *graph.output]:
        first = info.type.tensor_type.shape.dim[0]
        first.ClearField("dim_value")
        first.dim_param = "N"


def _save(model: onnx.ModelProto, path: Path) -> int:
    """Write graph and weights; returns the bytes of weights."""
    del model.graph.value_info[:]
    total = sum(len(t.raw_data) for t in model.graph.initializer)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.stem}.weights",
        size_threshold=_EXTERNAL_BYTES,
    )
    return total


def run_segments(record: TowerRecord, folder: Path, source: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that the chained segments pass on or give, by name.

    Args:
        source: (n, ..), what the first segment reads.
    """
    values = {record.segments[0].inputs[0].name: source}
    for segment in record.segments:
        session = open_plain(folder / segment.file)
        names = [tensor.name for tensor in segment.outputs]
        found = session.run(names, {t.name: values[t.name] for t in segment.inputs})
        values.update(zip(names, found, strict=True))
    return values


def check_segments(
    backbone: Backbone,
    side: str,
    record: TowerRecord,
    config: TapConfig,
    folder: Path,
    tolerance: float = 1e-4,
) -> float:
    """Run the chained segments against the library's own forward pass.

    Returns:
        The largest relative error over taps and embedding.

    Raises:
        EdgeLadderError: it is above `tolerance`.
    """
    tower = backbone.tower(side)
    sample = tower.sample()
    with torch.no_grad():
        wanted = tower.reference(sample, record.taps, config)
    values = run_segments(record, folder, sample.numpy())
    worst = 0.0
    for name, reference in wanted.items():
        expected = reference.numpy()
        error = float(np.abs(values[name] - expected).max() / (np.abs(expected).max() + 1e-12))
        worst = max(worst, error)
        if not error <= tolerance:
            raise EdgeLadderError(
                f"segments disagree with the model at {name!r}: relative error {error:.1e}",
                where=f"{side} tower of {backbone.name}",
                remedy="export with --dtype fp32, or report the model's name",
            )
    return worst
