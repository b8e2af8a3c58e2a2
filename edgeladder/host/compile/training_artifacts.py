"""`forward.onnx` -> onnxruntime-training's own artifacts, where its wheel is installed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgeladder.core.config import TrainConfig
from edgeladder.core.errors import ConfigError, EdgeLadderError

# Mean of one value is that value; unlike Identity no pass removes it, and it has no gradient of
# its own that would win over ours
_STOP = "Mean"
FILES = {
    "training_model": "training_model.onnx",
    "eval_model": "eval_model.onnx",
    "optimizer_model": "optimizer_model.onnx",
    "checkpoint": "checkpoint",
}


def available() -> bool:
    """Whether onnxruntime-training is installed here."""
    from edgeladder.runtime.engine import installed_engines

    return "ort-training" in installed_engines()


def write_artifacts(
    forward: Path,
    initial: Mapping[str, np.ndarray],
    parameters: Sequence[str],
    train: TrainConfig,
    folder: Path,
) -> dict[str, str]:
    """Training, evaluation and optimiser model and checkpoint, in `folder`.

    The gradient graph is what the `ort-training` engine runs. The optimiser model has the
    profile's AdamW and clipping; it knows one weight decay for all parameters, so the engine
    updates with our own graphs, which spare biases and gates, and the model serves onnxruntime-
    training's own Python, C++ and mobile APIs.

    Returns:
        role -> file name below `folder`.

    Raises:
        ConfigError: onnxruntime-training is not installed.
        EdgeLadderError: its gradient builder refuses the graph.
    """
    _require_installed()
    import onnxruntime
    from onnxruntime.capi import _pybind_state as native
    from onnxruntime.training import artifacts, onnxblock

    _register_stops(native)
    model = onnx.load(str(forward))
    _prepare(model)
    _as_initializers(model, {name: initial[name] for name in parameters})
    folder.mkdir(parents=True)
    optimizer = onnxblock.optim.AdamW(
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        weight_decay=train.weight_decay,
        clip_grad=onnxblock.optim.ClipGradNorm(train.clip),
    )
    onnxruntime.set_default_logger_severity(3)
    try:
        with _quiet():
            artifacts.generate_artifacts(
                model,
                requires_grad=list(parameters),
                frozen_params=[],
                optimizer=optimizer,
                artifact_directory=str(folder),
            )
    except RuntimeError as error:
        raise EdgeLadderError(
            f"onnxruntime-training cannot differentiate the ladder: {error}",
            where=str(forward),
            remedy="export with --engine stock",
        ) from error
    for name in ("training_model", "eval_model", "optimizer_model"):
        _readable(folder / FILES[name], model.ir_version)
    return dict(FILES)


def _require_installed() -> None:
    if not available():
        raise ConfigError(
            "onnxruntime-training is not installed on this host",
            where="--engine ort-training",
            remedy="pip install 'edgeladder[host,ort-training]' in an environment of its own, "
            "or export with --engine stock",
        )


def _readable(path: Path, ir_version: int) -> None:
    """The file format of its runtime: it builds the optimiser at the newest that onnx knows."""
    made = onnx.load(str(path))
    if made.ir_version > ir_version:
        made.ir_version = ir_version
        onnx.save(made, str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its graph passes log every step to file descriptor 2, past any setting of ours."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _register_stops(native: Any) -> None:
    """Zero gradients for detach and for the maximum that only ever feeds one.

    Its own list of stop edges is fixed; gradients of operators that it has none for are not.
    """
    zero = native.GradientNodeDefinition()
    zero.op_type, zero.domain, zero.attributes = "Sub", "", []
    zero.inputs, zero.outputs = ["I(0)", "I(0)"], ["GI(0)"]
    for op in (_STOP, "ReduceMax"):
        native.register_gradient_definition(f"::{op}", [zero])


def _prepare(model: onnx.ModelProto) -> None:
    """What its gradient builder needs: a stop that survives, constants of one reader each."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    _read_splits(model, values)
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Identity":  # torch's detach, and nothing else, in forward.onnx
            node.op_type = _STOP
        if node.op_type != "LayerNormalization":
            continue
        for place in (1, 2):  # shared, their gradients would be defined twice
            copy = onnx.TensorProto()
            copy.CopyFrom(values[node.input[place]])
            copy.name = f"{copy.name}/{number}"
            model.graph.initializer.append(copy)
            node.input[place] = copy.name


def _read_splits(model: onnx.ModelProto, values: Mapping[str, onnx.TensorProto]) -> None:
    """A Split with a piece that nobody reads becomes a Slice per piece that is read.

    Its gradient of a Split joins the gradients there are, which then is too short: a rung that
    only one side has leaves such pieces of the prompts.
    """
    read = {name for node in model.graph.node for name in node.input}
    read |= {info.name for info in model.graph.output}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Split" or read.issuperset(node.output):
            nodes.append(node)
            continue
        axis = next(int(a.i) for a in node.attribute if a.name == "axis")
        sizes = numpy_helper.to_array(values[node.input[1]])
        stops = np.cumsum(sizes)
        for place, (output, stop) in enumerate(zip(node.output, stops, strict=True)):
            if output not in read:
                continue
            bounds = []
            for label, value in (("start", stop - sizes[place]), ("stop", stop), ("axis", axis)):
                bounds.append(f"{output}/{label}")
                constant = numpy_helper.from_array(np.array([value], np.int64), bounds[-1])
                model.graph.initializer.append(constant)
            nodes.append(onnx.helper.make_node("Slice", [node.input[0], *bounds], [output]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _as_initializers(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
    kept = [info for info in model.graph.input if info.name not in values]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    loss = [info for info in model.graph.output if info.name == "loss"]
    del model.graph.output[:]
    model.graph.output.extend(loss)
