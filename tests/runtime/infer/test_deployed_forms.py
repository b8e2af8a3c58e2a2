"""Deployed files that resize by themselves, and that give embeddings for an index."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeladder.core.adapter_record import CalibrationRecord
from edgeladder.core.errors import ConfigError, EdgeLadderError
from edgeladder.core.inference import Form
from edgeladder.core.manifest import PreprocessRecord
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT, UINT8
from edgeladder.runtime import deploy_check, deployment, resize_graph
from edgeladder.runtime.adapter import load_adapter, save_adapter
from edgeladder.runtime.classifier import Classifier
from edgeladder.runtime.deployment import TOLERANCE, deploy
from edgeladder.runtime.logits import softmax
from edgeladder.runtime.pictures.decode import square_of
from edgeladder.runtime.pictures.drawn import drawn_pictures
from edgeladder.runtime.resize_graph import resize
from edgeladder.runtime.session import open_plain

SIDES = [(64, 64), (65, 64), (37, 301), (300, 200), (201, 300), (500, 31), (1, 1), (90, 7)]
GREY = {"mean": [0.5] * 3, "std": [0.5] * 3}


def pictures() -> list[np.ndarray]:
    """Waves, discs and noise, of all those sides."""
    random = np.random.default_rng(0)
    drawn = drawn_pictures(500)
    found = []
    for number, (height, width) in enumerate(SIDES):
        noise = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        found.append(drawn[number % len(drawn)][:height, :width] // 255 * 195 + noise)
    return found


def resizer(preprocess: PreprocessRecord, *, portable: bool) -> bytes:
    """A model that resizes and does nothing else."""
    graph = Graph(opsets={"": 18})
    graph.declare("picture", UINT8, ["N", "H", "W", 3], out=False)
    planes = graph.add("Transpose", ["picture"], attributes={"perm": [0, 3, 1, 2]})
    small = resize(graph, planes, preprocess, portable=portable)
    graph.add("Cast", [small], "square", {"to": FLOAT})
    graph.declare("square", FLOAT, ["N", 3, "S", "S"], out=True)
    return graph.serialized()


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_resizing_is_pillows_within_a_grey_level(
    mode: str, interpolation: str, portable: bool
) -> None:
    preprocess = PreprocessRecord(
        size=64, resize_mode=mode, interpolation=interpolation, fill=7, **GREY
    )
    session = open_plain(resizer(preprocess, portable=portable), threads=1)
    differing = values = 0
    for picture in pictures():
        expected = square_of(Image.fromarray(picture), preprocess).astype(np.float32)
        (found,) = session.run(None, {"picture": picture[None]})
        apart = np.abs(found[0].transpose(1, 2, 0) - expected)
        # squashed, long ones are resampled in the other order by some Pillows
        assert apart.max() <= (4 if mode == "squash" else 1), picture.shape
        differing, values = differing + int((apart > 0).sum()), values + apart.size
    assert differing / values < (0.1 if mode == "squash" else 0.01)


def test_onnxs_own_evaluator_resizes_as_pillow_does() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    preprocess = PreprocessRecord(size=24, **GREY)
    model = onnx.load_from_string(resizer(preprocess, portable=True))
    onnx.checker.check_model(model, full_check=True)
    picture = pictures()[2][:30, :41]
    (found,) = ReferenceEvaluator(model).run(None, {"picture": picture[None]})
    expected = square_of(Image.fromarray(picture), preprocess)
    assert np.abs(found[0].transpose(1, 2, 0) - expected).max() <= 1


@pytest.mark.parametrize("portable", [False, True])
def test_a_file_that_resizes_says_what_predict_says(
    run_folder: Path, picture_folder: Path, tmp_path: Path, portable: bool
) -> None:
    form = Form(include_resize=True, portable=portable)
    deployed = deploy(run_folder, tmp_path / "model.onnx", form)
    assert deployed.input.shape == ["N", "height", "width", 3]
    assert deployed.resize_difference <= 1 and deployed.difference < TOLERANCE
    session = open_plain(tmp_path / "model.onnx", threads=1)
    told = session.get_modelmeta().custom_metadata_map
    assert told["include_resize"] == "true" and "any height" in told["input"]
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    with Classifier.open(run_folder) as classifier:
        for path in sorted(picture_folder.rglob("*.png"))[:4]:
            expected = softmax(classifier.logits(classifier.square(path.read_bytes())[None]))
            picture = np.asarray(Image.open(path).convert("RGB"))
            (found,) = session.run(None, {"picture": picture[None]})
            np.testing.assert_allclose(found, expected, atol=2e-3)  # a grey level here and there


def test_whole_pictures_are_drawn_where_the_runs_own_are_gone(
    run_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    picture_folder.rename(tmp_path / "elsewhere")
    with Classifier.open(run_folder) as classifier:
        drawn = deploy_check.whole_pictures(classifier)
    assert len({picture.shape for picture in drawn}) == 3
    deployed = deploy(run_folder, tmp_path / "model.onnx", Form(include_resize=True))
    assert deployed.resize_difference <= 1 and deployed.compared.origin == "synthetic"


def test_another_kernel_is_noticed_and_nothing_is_written(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"bicubic": {"mode": "linear"}, "bilinear": {"mode": "linear"}}
    monkeypatch.setattr(resize_graph, "_KERNELS", told)
    with pytest.raises(
        EdgeLadderError, match="resized pictures differ from predict's by"
    ) as caught:
        deploy(run_folder, tmp_path / "model.onnx", Form(include_resize=True))
    assert "without --include-resize" in caught.value.remedy
    assert not list(tmp_path.glob("*model*"))


def test_a_way_of_resizing_that_onnx_has_not_is_refused() -> None:
    preprocess = PreprocessRecord(size=24, interpolation="lanczos", **GREY)
    with pytest.raises(ConfigError, match="cannot resize by lanczos"):
        resizer(preprocess, portable=False)


@pytest.mark.parametrize(
    "form", [Form(output="embedding"), Form(output="embedding", dtype="int8-weights")]
)
def test_an_embedding_is_the_ladders_own(run_folder: Path, tmp_path: Path, form: Form) -> None:
    adapter = load_adapter(run_folder)
    told = CalibrationRecord(temperature=2.0, ladder_temperature=2.0)
    adapter.record = replace(adapter.record, calibration=told)
    save_adapter(run_folder, adapter)
    deployed = deploy(run_folder, tmp_path / "index.onnx", form)
    assert deployed.difference < (TOLERANCE if form.dtype == "fp32" else 0.1)
    session = open_plain(tmp_path / "index.onnx", threads=1)
    squares = drawn_pictures(session.get_inputs()[0].shape[1])[:3]
    vectors, classes = session.run(["picture_embedding", "class_embeddings"], {"picture": squares})
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    told = session.get_modelmeta().custom_metadata_map
    with Classifier.open(run_folder) as classifier:
        np.testing.assert_allclose(classes, classifier.class_embeddings.tuned, atol=1e-6)
        expected = classifier.logits(squares)
    logits = float(told["logit_scale"]) * vectors @ classes.T + float(told["logit_bias"])
    # this run has a ladder alone, so its logits are those of the embeddings
    np.testing.assert_allclose(logits, expected, atol=1e-3 if form.dtype == "fp32" else 2.0)
    assert json.loads(told["classes"]) == deployed.classes
    assert deployed.output.shape == ["N", vectors.shape[1]]
    assert deployed.class_embeddings.shape == list(classes.shape)


def test_texts_to_search_for_are_embedded_beside(run_folder: Path, tmp_path: Path) -> None:
    deployed = deploy(
        run_folder, tmp_path / "index.onnx", Form(output="embedding"), classes="a red boot,a hat"
    )
    assert deployed.classes == ["a red boot", "a hat"]
    assert deployed.class_embeddings.shape[0] == 2 and deployed.asked.new == deployed.classes


def test_wrong_embeddings_are_noticed(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Classifier.embeddings
    monkeypatch.setattr(Classifier, "embeddings", lambda *given: -right(*given))
    with pytest.raises(EdgeLadderError, match="the file's embeddings differ"):
        deploy(run_folder, tmp_path / "index.onnx", Form(output="embedding"))


def test_an_unknown_output_is_refused_with_the_nearest(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown output 'embeding'") as caught:
        deployment.check_form(tmp_path / "model.onnx", replace(Form(), output="embeding"))
    assert "'embedding'" in caught.value.remedy
