"""The export: what is in a bundle, what the gate refuses, and that both engines learn alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LossConfig, TrainConfig
from edgeladder.core.errors import ConfigError, EdgeLadderError
from edgeladder.core.initial import initial_values
from edgeladder.core.yaml_config import load_profile
from edgeladder.host.compile import gate
from edgeladder.host.export import ExportOptions, export
from edgeladder.host.model.backbone import load_backbone
from edgeladder.host.model.names import canonical
from edgeladder.runtime.engine import StepPlan, installed_engines, open_engine
from edgeladder.runtime.engine.golden import ArrayInputs, groups_of, perturbed, replay
from edgeladder.runtime.engine.stock import StockEngine
from tests.make_bundle import make_bundle, register_model


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def step_inputs(bundle: Bundle, pictures: int, classes: int, seed: int) -> ArrayInputs:
    """A random batch whose pictures of a class are alike, so that there is something to learn."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    labels = np.arange(pictures) % classes
    for group in bundle.manifest.ladder.groups:
        count = pictures if group.side == "image" else classes
        shape = (len(group.taps), group.tokens, count, group.width)
        taps = random.standard_normal(shape).astype(np.float32)
        if group.side == "image":
            centres = random.standard_normal((*shape[:2], classes, group.width))
            taps = (taps + 2 * centres[:, :, labels]).astype(np.float32)
        arrays[group.input] = taps
    width = bundle.manifest.model.embedding_dim
    for side, count in (("image", pictures), ("text", classes)):
        z = random.standard_normal((count, width)).astype(np.float32)
        arrays[f"{side}_embedding"] = z / np.linalg.norm(z, axis=1, keepdims=True)
    arrays["targets"] = np.eye(classes, dtype=np.float32)[labels]
    return ArrayInputs(arrays, groups_of(bundle))


def test_golden_steps_replay_on_every_engine(bundle: Bundle) -> None:
    for engine in installed_engines():
        result = replay(bundle, engine)
        assert result["engine"] == engine
        assert result["ok"], result


def test_training_artifacts_hold_only_ladder_and_prompts(bundle: Bundle) -> None:
    names = {record.name for record in bundle.manifest.ladder.parameters}
    assert any(name.startswith("prompts.") for name in names)
    size = sum(int(np.prod(r.shape)) for r in bundle.manifest.ladder.parameters)
    files = [r.file for r in bundle.manifest.ladder.graphs.values()]
    files += [f for f in bundle.manifest.ladder.ort_training.values() if f.endswith(".onnx")]
    for file in files:
        model = onnx.load(str(bundle.path(file)))
        constants = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
        assert constants < 0.2 * size + 4096, f"{file} carries {constants} numbers"
    fused = bundle.manifest.ladder.graphs["fused"]
    assert {f"gradient/{name}" for name in names} <= set(fused.outputs)


def test_parameters_that_start_at_zero_are_not_stored(bundle: Bundle) -> None:
    ladder = bundle.manifest.ladder
    stored = load_file(bundle.path(ladder.initial))
    values = dict(initial_values(bundle))
    assert list(values) == [r.name for r in (*ladder.parameters, *ladder.buffers)]
    for record in (*ladder.parameters, *ladder.buffers):
        value = values[record.name]
        assert value.shape == tuple(record.shape) and value.dtype == np.float32
        np.testing.assert_array_equal(value, stored.get(record.name, 0))
    left_out = values.keys() - stored.keys()
    assert {"image_up", "text_up"} <= left_out
    assert left_out == {r.name for r in ladder.parameters if not values[r.name].any()}


def test_graphs_that_hold_say_how_much(bundle: Bundle) -> None:
    records = bundle.manifest.ladder.graphs
    for name, record in records.items():
        assert (record.residual_bytes > 0) is name.startswith("forward_saved"), name
    side = records["forward_saved_image"]
    model = onnx.load(str(bundle.path(side.file)))
    held = 0  # of one picture: every output but the embedding, B at 1
    for output in list(model.graph.output)[1:]:
        shape = [d.dim_value or d.dim_param for d in output.type.tensor_type.shape.dim]
        symbolic = [d for d in shape if isinstance(d, str)]
        assert len(symbolic) <= 1
        factor = [int(d.split("*")[0]) if "*" in d else 1 for d in symbolic]
        held += 4 * int(np.prod([d for d in shape if isinstance(d, int)] + factor)) * len(symbolic)
    assert side.residual_bytes == held


def test_step_zero_is_zero_shot(bundle: Bundle) -> None:
    inputs = step_inputs(bundle, 6, 4, seed=1)
    engine = StockEngine(bundle, StepPlan(), TrainConfig(), LossConfig())
    image = engine.encode_image(inputs.image_taps(0, 6), inputs.image_embedding, {})
    text = engine.encode_text(inputs.text_taps(0, 4), inputs.text_embedding)
    scale = bundle.manifest.model.logit_scale
    zero_shot = scale * inputs.image_embedding @ inputs.text_embedding.T
    assert np.abs(scale * image @ text.T - zero_shot).max() < 1e-5 * scale
    engine.close()


def test_both_engines_follow_the_same_curve_over_50_steps(bundle: Bundle) -> None:
    if "ort-training" not in installed_engines():
        pytest.fail("the host environment must hold onnxruntime-training: tools/test makes it so")
    inputs = step_inputs(bundle, 8, 4, seed=2)
    curves = {}
    for name in ("stock", "ort-training"):
        engine = open_engine(
            name, bundle, StepPlan(), TrainConfig(learning_rate=1e-3), LossConfig(anchor=0.1)
        )
        curves[name] = np.array([engine.step(inputs, 1e-3).loss for _ in range(50)])
        engine.close()
    assert np.isfinite(curves["stock"]).all()
    assert curves["stock"][-1] < 0.7 * curves["stock"][0], "nothing was learnt"
    np.testing.assert_allclose(curves["ort-training"], curves["stock"], rtol=1e-3)


@pytest.mark.parametrize("mode", ["recompute", "chunked"])
def test_modes_agree_over_steps(bundle: Bundle, mode: str) -> None:
    inputs = step_inputs(bundle, 7, 5, seed=3)
    found = {}
    for plan in (StepPlan(), StepPlan(mode, 3)):
        engine = StockEngine(bundle, plan, TrainConfig(), LossConfig())
        engine.set_parameters(perturbed(engine.parameters()))
        losses = [engine.step(inputs, 1e-3).loss for _ in range(5)]
        found[plan.mode] = (losses, engine.parameters())
        engine.close()
    np.testing.assert_allclose(found[mode][0], found["fused"][0], rtol=1e-5)
    # element by element AdamW turns the rounding of a vanishing gradient into a whole step
    for name, value in found["fused"][1].items():
        error = np.linalg.norm(found[mode][1][name] - value) / np.linalg.norm(value)
        assert error < 1e-5 * 5, name


def test_a_failing_gate_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = gate._torch_gradients

    def wrong(*arguments: object) -> tuple[float, dict[str, np.ndarray]]:
        loss, gradients = exact(*arguments)
        name = next(n for n in gradients if "query" in n and "bias" not in n)
        gradients[name] = gradients[name] * 1.001
        return loss, gradients

    monkeypatch.setattr(gate, "_torch_gradients", wrong)
    with pytest.raises(EdgeLadderError, match="gradient of .*query.* is off by 1.0e-03"):
        make_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("ViT-B/16", "ViT-B-16"), ("vit-b-16", "ViT-B-16"), ("ViT-L/14@336px", "ViT-L-14-336")],
)
def test_both_spellings_of_a_model(spelling: str, name: str) -> None:
    assert canonical(spelling) == name


def test_weights_that_cannot_be_downloaded_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(ConfigError, match="--pretrained FILE"):
        load_backbone("ViT-B/16")
    with pytest.raises(ConfigError, match="neither a file nor a tag"):
        load_backbone("ViT-B/16", "openia")


def test_weights_from_a_local_file(tmp_path: Path) -> None:
    name = register_model()
    random = load_backbone(name, "none")
    file = tmp_path / "weights.pt"
    with torch.no_grad():
        random.model.logit_scale.fill_(3.0)
    torch.save(random.model.state_dict(), file)
    loaded = load_backbone(name, str(file))
    assert loaded.logit_scale == pytest.approx(np.exp(3.0), rel=1e-5)
    assert loaded.origin == "file weights.pt"
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not weights")
    with pytest.raises(EdgeLadderError, match="cannot load weights"):
        load_backbone(name, str(broken))


def test_an_unknown_engine_or_dtype_is_refused(tmp_path: Path) -> None:
    for options in (ExportOptions(engine="tvm"), ExportOptions(dtype="fp8")):
        with pytest.raises(ConfigError, match="is not one of"):
            export("ViT-B/16", "none", load_profile("tiny"), options, out=tmp_path / "b")
