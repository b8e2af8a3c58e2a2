"""`deploy --portable`: standard operators alone, and the same logits in other runtimes.

ONNX's reference evaluator answers where onnx is installed (the host's tests). OpenVINO answers
where it is: `pip install --no-deps openvino` beside a device's environment.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.core.inference import Deployment, Form
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import message, parse, text
from edgeladder.runtime.classifier import Classifier
from edgeladder.runtime.deployment import TOLERANCE, deploy
from edgeladder.runtime.logits import softmax
from edgeladder.runtime.portable_graph import make_portable, permutation


def domains(path: Path) -> tuple[set[str], set[str], set[str]]:
    """Domains of a file's nodes, those it imports, and its operators."""
    model = parse(path.read_bytes())
    graph = next(value for number, value in model if number == 7)
    nodes = [parse(value) for number, value in parse(graph) if number == 1]
    used = {text(value) for node in nodes for number, value in node if number == 7}
    imports = [dict(parse(value)) for number, value in model if number == 8]
    operators = {text(value) for node in nodes for number, value in node if number == 4}
    return used, {text(item.get(1, b"")) for item in imports}, operators


@pytest.fixture
def deployed(run_folder: Path, tmp_path: Path) -> Deployment:
    """The run's portable file."""
    return deploy(run_folder, tmp_path / "model.onnx", Form(portable=True))


@pytest.fixture
def asked(run_folder: Path, bundle_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Squares of noise, and the probabilities that predict gives them."""
    side = Bundle.open(bundle_folder).manifest.preprocess.size
    squares = np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    with Classifier.open(run_folder) as classifier:
        return squares, softmax(classifier.logits(squares))


def test_a_portable_file_holds_standard_operators_alone(
    deployed: Deployment, run_folder: Path, tmp_path: Path
) -> None:
    used, imported, operators = domains(Path(deployed.path))
    assert used <= {"", "ai.onnx"} and imported == {""}
    assert not operators & {"FusedMatMul", "QuickGelu"}
    assert deployed.difference < TOLERANCE
    deploy(run_folder, tmp_path / "usual.onnx")
    assert {"FusedMatMul", "QuickGelu"} <= domains(tmp_path / "usual.onnx")[2]


def test_onnxs_own_evaluator_gives_the_same(
    deployed: Deployment, asked: tuple[np.ndarray, np.ndarray]
) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    onnx.checker.check_model(deployed.path, full_check=True)
    squares, expected = asked
    (found,) = ReferenceEvaluator(deployed.path).run(["probabilities"], {"picture": squares})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_openvino_gives_the_same(
    deployed: Deployment, asked: tuple[np.ndarray, np.ndarray]
) -> None:
    openvino = pytest.importorskip("openvino")
    squares, expected = asked
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    model = openvino.compile_model(deployed.path, "CPU", exact)
    np.testing.assert_allclose(model(squares)["probabilities"], expected, atol=1e-4)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_axes_move_as_onnxruntimes_fused_product_moves_them(batch: bool, swap: bool) -> None:
    """Against einsum: rows first where the batch axes were turned, last axes swapped after it."""
    letters = "mbck" if batch else "bcmk"
    if swap:
        letters = letters.translate(str.maketrans("mk", "km"))
    sizes = {"m": 2, "b": 3, "c": 4, "k": 5}
    array = np.arange(120.0).reshape([sizes[x] for x in letters])
    moved = array.transpose(permutation(4, batch=batch, swap=swap))
    np.testing.assert_array_equal(moved, np.einsum(f"{letters}->bcmk", array))


def test_an_operator_that_nobody_wrote_out_is_named() -> None:
    graph = Graph(opsets={"": 18, "com.microsoft": 1})
    fields: list[tuple[int, str]] = [(1, "x"), (2, "y"), (4, "BiasGelu"), (7, "com.microsoft")]
    graph.nodes.append(message(fields))
    with pytest.raises(ConfigError, match="com.microsoft.BiasGelu is no operator"):
        make_portable(graph)
