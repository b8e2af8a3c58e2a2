"""Towers on other execution providers: joined, cached apart, and with OpenVINO's own library.

onnxruntime-openvino replaces the module `onnxruntime`, so what needs it is skipped elsewhere:
`tools/providers` makes an environment with it and runs this file there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_tower import CONTEXT, SIZE, TinyBundle

from edgeladder.core import provider as providers
from edgeladder.core.errors import ConfigError
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT
from edgeladder.core.provider import PROVIDERS, ProviderChoice, Trial, choose
from edgeladder.runtime.accelerator_options import provider_options
from edgeladder.runtime.cache.layout import Layout
from edgeladder.runtime.provider_trial import relative_error, try_provider
from edgeladder.runtime.session import open_accelerated, open_plain
from edgeladder.runtime.towers.joined_tower import joined_tower
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes

OPENVINO = ProviderChoice(name="openvino", arithmetic="openvino fp32 1")
needs_openvino = pytest.mark.skipif(
    PROVIDERS["openvino"].registered not in onnxruntime.get_available_providers(),
    reason="needs onnxruntime-openvino: tools/providers",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def pixels(count: int) -> np.ndarray:
    """Random pictures."""
    random = np.random.default_rng(0)
    return random.normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def test_a_joined_tower_gives_what_its_segments_give(tiny: TinyBundle, tmp_path: Path) -> None:
    array = pixels(5)
    for side, given, expected in (
        ("image", array, tiny.image_reference(array)),
        ("text", tokens := np.ones((3, CONTEXT), np.int64), tiny.text_reference(tokens)),
    ):
        tower = getattr(tiny.manifest, side)
        names = [*(tap.name for tap in tower.taps), tower.embedding]
        path = joined_tower(tiny, side, tmp_path)
        assert joined_tower(tiny, side, tmp_path) == path
        session = open_plain(path, 1)
        found = session.run(names, {session.get_inputs()[0].name: given})
        for name, values in zip(names, found, strict=True):
            handed_on = "embedding" if name == tower.embedding else name
            np.testing.assert_allclose(values, expected[handed_on], rtol=1e-5, atol=1e-5)


def norm_model(*, deviation_read: bool) -> bytes:
    """A layer norm with the three outputs that exporters write."""
    graph = Graph(opsets={"": 17})
    scale = graph.constant("scale", np.ones(4, np.float32))
    graph.add("LayerNormalization", ["x", scale], "y")
    graph.nodes[-1] = graph.nodes[-1] + b"".join(b"\x12" + bytes([1]) + n for n in (b"m", b"d"))
    graph.declare("x", FLOAT, ["N", 4], out=False)
    out = graph.add("Mul", ["y", "d"]) if deviation_read else "y"
    graph.declare(out, FLOAT, ["N", 4], out=True)
    return graph.serialized()


def test_a_layer_norm_is_written_without_outputs_that_nobody_reads() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    plain, read = norm_model(deviation_read=False), norm_model(deviation_read=True)
    assert b"\x12\x01m" not in plain and b"\x12\x01d" not in plain
    assert b"\x12\x01d" in read
    for model in (plain, read):
        assert open_plain(model, 1).run(None, {"x": x})[0].shape == (2, 4)


def test_results_of_providers_are_cached_apart(tiny: TinyBundle) -> None:
    names = {
        Layout(tiny, "image", "fp16", arithmetic).name
        for arithmetic in ("", "cuda tf32 1.23.2", "cuda tf32 1.24.0", "tensorrt fp16 1.23.2")
    }
    assert len(names) == 4
    assert Layout(tiny, "image", "fp16").name == Layout(tiny, "image", "fp16", "").name


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_a_provider_whose_library_is_missing_is_refused_by_name(
    tiny: TinyBundle, tmp_path: Path, name: str
) -> None:
    """As far as a machine without the hardware goes: options are built, onnxruntime is asked."""
    if PROVIDERS[name].registered in onnxruntime.get_available_providers():
        pytest.skip("it is here")
    path = joined_tower(tiny, "image", tmp_path)
    with pytest.raises(ConfigError, match=name) as caught:
        open_accelerated(
            path, name, threads=1, sizes={"N": 2}, folder=tmp_path, memory_bytes=10_000_000
        )
    assert "--provider cpu" in str(caught.value.remedy)


def test_memory_and_engines_are_told_to_cuda_and_tensorrt(tmp_path: Path) -> None:
    asked = provider_options("tensorrt", threads=2, folder=tmp_path, memory_bytes=400)
    assert [name for name, _ in asked] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    tensorrt, cuda = (options for _, options in asked)
    assert tensorrt["trt_engine_cache_enable"] == "1"
    assert tensorrt["trt_engine_cache_path"] == str(tmp_path)
    assert tensorrt["trt_max_workspace_size"] == "100"
    assert cuda["gpu_mem_limit"] == "400"
    assert cuda["arena_extend_strategy"] == "kSameAsRequested"


def test_what_a_wheel_offers_is_told_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "_module_folder", lambda: tmp_path)
    assert providers.offered() == []
    for name in ("cuda", "tensorrt"):
        (tmp_path / PROVIDERS[name].library).touch()
    assert [item.name for item in providers.offered()] == ["tensorrt", "cuda"]
    assert [item.name for item in providers.offered("cuda")] == ["cuda"]
    assert providers.offered("cpu") == []
    with pytest.raises(ConfigError, match="cudda") as caught:
        providers.check_provider("cudda")
    assert "did you mean 'cuda'" in str(caught.value.remedy)


@needs_openvino
@pytest.mark.parametrize(("side", "count"), [("image", 5), ("image", 1), ("text", 3)])
def test_openvino_gives_what_the_cpu_gives(
    tiny: TinyBundle, tmp_path: Path, side: str, count: int
) -> None:
    array = pixels(count) if side == "image" else np.ones((count, CONTEXT), np.int64)
    reference = tiny.image_reference if side == "image" else tiny.text_reference
    sizes = TowerSizes(batch=2, threads=1, provider=OPENVINO)
    found: list[dict[str, np.ndarray]] = []
    TowerRunner(tiny, side, sizes, tmp_path).run(
        ArraySamples(array), lambda start, outputs: found.append(outputs)
    )
    assert [len(part["embedding"]) for part in found] == [2] * (count // 2) + [1] * (count % 2)
    for name, values in reference(array).items():
        together = np.concatenate([part[name] for part in found])
        np.testing.assert_allclose(together, values, rtol=1e-4, atol=1e-5)


@needs_openvino
def test_a_trial_with_openvino_agrees_and_tells_both_times(tiny: TinyBundle) -> None:
    found = try_provider(tiny, "openvino", threads=1, memory_bytes=None, mark=lambda: (5, 0))
    assert found.agrees, found.told()
    assert found.seconds > 0 and found.cpu_seconds > 0 and found.worker_bytes == 5


def test_a_trial_of_what_is_not_here_says_so(tiny: TinyBundle) -> None:
    found = try_provider(tiny, "cuda", threads=1, memory_bytes=None, mark=lambda: (0, 0))
    assert not found.agrees
    assert found.failed and "cuda" in found.failed


def trial(name: str, **told: object) -> Trial:
    """One that agrees and is twice as fast, but for what is told."""
    values = {"seconds": 1.0, "cpu_seconds": 2.0, "difference": 1e-6, **told}
    return Trial(provider=name, arithmetic=f"{name} x", **values)


def test_the_fastest_that_agrees_is_taken_and_else_the_cpu_says_why() -> None:
    chosen = choose("auto", [trial("tensorrt", cpu_seconds=9.0), trial("cuda")])
    assert (chosen.name, chosen.arithmetic) == ("tensorrt", "tensorrt x")
    wrong = trial("tensorrt", cpu_seconds=9.0, difference=0.02)
    assert choose("auto", [wrong, trial("cuda")]).name == "cuda"
    slow = trial("cuda", cpu_seconds=1.05)
    found = choose("auto", [wrong, slow, trial("openvino", failed="no memory")])
    assert not found.accelerates and found.arithmetic == ""
    for words in ("off by 2e-02, 1e-02 is allowed", "1.05 x the CPU", "openvino: no memory"):
        assert words in found.reason
    assert choose("cuda", [slow]).name == "cuda"  # by name: however fast
    with pytest.raises(ConfigError, match="off by"):
        choose("tensorrt", [wrong])
    with pytest.raises(ConfigError, match="not in this environment") as caught:
        choose("openvino", [])
    assert "onnxruntime-openvino" in str(caught.value.remedy)
    assert "no provider" in choose("auto", []).reason


def test_half_precision_has_wider_bounds_than_float32() -> None:
    assert trial("cuda", difference=5e-3).agrees
    assert not trial("openvino", difference=5e-3).agrees
    assert not trial("cuda", difference=float("inf")).agrees
    ones = {"x": np.ones((2, 3), np.float32)}
    assert relative_error({"x": ones["x"] * np.array([[1.0], [1.1]])}, ones) == pytest.approx(0.1)
    assert relative_error({"x": ones["x"] * np.nan}, ones) == float("inf")
