"""onnxruntime-training against torch: every kind of prompts, unequal numbers of taps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeladder.core.config import TrainConfig
from edgeladder.host.compile.training_artifacts import available, write_artifacts
from edgeladder.runtime.kept_prompts import kept_places
from tests.host.compile.ladders import EVEN, NAMES, SHORT, Recipe, case, relative

CASES = (
    Recipe("token", image=EVEN, text=SHORT),  # text's prompts of the first rung: read by nobody
    Recipe("diffusion", image=EVEN, text=SHORT),
    Recipe("cross", "trunk+up", "unipt", "sum", True, bits=1, keep=0.5, couple=False, text=SHORT),
    Recipe("memory", "none", "unipt", keep=0.5),
)


@pytest.mark.parametrize("recipe", CASES, ids=str)
def test_gradients_are_torchs(recipe: Recipe, tmp_path: Path) -> None:
    assert available(), (
        "the host environment must hold onnxruntime-training: tools/test makes it so"
    )
    it = case(recipe)
    state, data = it.random_state(), it.data()
    it.forward.save(tmp_path / "forward.onnx")
    parameters = list(it.trained.parameters)
    files = write_artifacts(
        tmp_path / "forward.onnx", state, parameters, TrainConfig(), tmp_path / "artifacts"
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "artifacts" / files["training_model"]))
    buffers = {
        f"{name}_grad.accumulation.buffer": np.zeros_like(state[name]) for name in parameters
    }
    given = {**data, **state, **kept_places(state, NAMES), **buffers}
    given["lazy_reset_grad"] = np.array([True])
    names = [output.name for output in session.get_outputs()]
    wanted = {item.name: given[item.name] for item in session.get_inputs()}
    # the sums lie in the buffers' own memory, which is what the engine relies on too
    binding = session.io_binding()
    held = {}
    for name, value in wanted.items():
        held[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        binding.bind_ortvalue_input(name, held[name])
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    expected, gradients = it.reference(data, state)
    loss = binding.get_outputs()[names.index("loss")].numpy()
    assert float(loss) == pytest.approx(float(expected["loss"]), rel=1e-4)
    for name in parameters:
        found = held[f"{name}_grad.accumulation.buffer"].numpy()
        assert relative(found, gradients[name]) < 1e-4, name
