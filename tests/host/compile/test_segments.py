"""Segments chained on onnxruntime against the library's own forward pass, make by make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.manifest import TowerRecord
from edgeladder.host.compile.segments import check_segments, write_segments
from edgeladder.host.model.backbone import Backbone, resolve_taps
from tests.host.model.small_models import CONTEXT, small_backbone

TAPS = TapConfig(count=2)


def written(backbone: Backbone, side: str, folder: Path, dtype: str = "fp32") -> TowerRecord:
    taps = resolve_taps(backbone, side, TAPS)
    return write_segments(backbone, side, taps, TAPS, folder, dtype=dtype)


def run(record: TowerRecord, folder: Path, source: np.ndarray) -> dict[str, np.ndarray]:
    values = {record.segments[0].inputs[0].name: source}
    for segment in record.segments:
        session = onnxruntime.InferenceSession(str(folder / segment.file))
        names = [tensor.name for tensor in segment.outputs]
        found = session.run(names, {t.name: values[t.name] for t in segment.inputs})
        values.update(zip(names, found, strict=True))
    return values


@pytest.fixture(scope="module")
def openai() -> Backbone:
    return small_backbone("openai")


@pytest.fixture(scope="module")
def image(openai: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[TowerRecord, Path]:
    folder = tmp_path_factory.mktemp("image")
    return written(openai, "image", folder), folder


@pytest.mark.parametrize("make", ["siglip", "eva", "efficientnet"])
def test_timm_towers_agree_with_the_library(make: str, tmp_path: Path) -> None:
    """EVA-02 turns queries and keys by a rotary embedding, and gates its feed-forward."""
    backbone = small_backbone(make)
    record = written(backbone, "image", tmp_path)
    assert check_segments(backbone, "image", record, TAPS, tmp_path) < 1e-4
    assert len(record.segments) > 3  # cut, not one piece
    assert (record.embedding_pre is None) == (make == "siglip")


@pytest.mark.parametrize("make", ["resnet", "coca"])
def test_image_towers_that_pool_by_attention(make: str, tmp_path: Path) -> None:
    """OpenAI's ResNets, at their stages in parts of at most eight bottlenecks, and CoCa's poolers.

    Other batches than the export saw, against what the model itself says.
    """
    backbone = small_backbone(make)
    record = written(backbone, "image", tmp_path)
    assert check_segments(backbone, "image", record, TAPS, tmp_path) < 1e-4
    assert len(record.segments) == {"resnet": 7, "coca": 5}[make]
    assert record.embedding_pre is not None
    size = backbone.image.size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = backbone.model.visual(pixels)
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    for count in (1, 3):
        found = run(record, tmp_path, pixels[:count].numpy())
        np.testing.assert_allclose(found["embedding"], expected[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "start", "end", "pad"), [("coca", 298, 299, 0), ("roberta", 0, 2, 1)]
)
def test_text_towers_that_hide_padding(
    make: str, start: int, end: int, pad: int, tmp_path: Path
) -> None:
    """Short, empty and full texts: what follows the end token must not be seen, or as trained."""
    backbone = small_backbone(make)
    assert backbone.context_length == CONTEXT
    record = written(backbone, "text", tmp_path)
    assert check_segments(backbone, "text", record, TAPS, tmp_path) < 1e-4
    tokens = torch.full((3, CONTEXT), pad, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([start, 5, 6, end])
    tokens[1, :2] = torch.tensor([start, end])
    tokens[2] = torch.tensor([start, *range(20, 20 + CONTEXT - 2), end])
    with torch.no_grad():
        expected = backbone.model.text(tokens)
        wanted = backbone.text.reference(tokens, record.taps, TAPS)
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    found = run(record, tmp_path, tokens.numpy())
    np.testing.assert_allclose(found["embedding"], expected, rtol=1e-4, atol=1e-5)
    for tap in record.taps:
        np.testing.assert_allclose(found[tap.name], wanted[tap.name].numpy(), rtol=1e-3, atol=1e-4)


def test_clip_image_tower_at_other_batch_sizes(
    openai: Backbone, image: tuple[TowerRecord, Path]
) -> None:
    record, folder = image
    assert check_segments(openai, "image", record, TAPS, folder) < 1e-4
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = openai.model.encode_image(pixels).numpy()
    for count in (1, 3):
        found = run(record, folder, pixels[:count].numpy())
        np.testing.assert_allclose(found["embedding"], expected[:count], rtol=1e-4, atol=1e-5)
        for tap in record.taps:
            assert found[tap.name].shape == (count, tap.tokens, tap.width)
            np.testing.assert_allclose(found[tap.name].mean(-1), 0, atol=1e-5)
            np.testing.assert_allclose(found[tap.name].var(-1), 1, atol=1e-2)


def test_text_tower_reads_short_and_full_texts(openai: Backbone, tmp_path: Path) -> None:
    record = written(openai, "text", tmp_path)
    assert check_segments(openai, "text", record, TAPS, tmp_path) < 1e-4
    tokens = torch.zeros(3, CONTEXT, dtype=torch.int64)
    tokens[0, :3] = torch.tensor([298, 5, 299])  # one word, two spans
    tokens[1, :2] = torch.tensor([298, 299])  # no word at all
    tokens[2] = torch.tensor([298, *range(20, 20 + CONTEXT - 2), 299])
    with torch.no_grad():
        expected = openai.model.encode_text(tokens).numpy()
        wanted = openai.text.reference(tokens, record.taps, TAPS)
    found = run(record, tmp_path, tokens.numpy())
    np.testing.assert_allclose(found["embedding"], expected, rtol=1e-4, atol=1e-5)
    for tap in record.taps:
        np.testing.assert_allclose(found[tap.name], wanted[tap.name].numpy(), rtol=1e-3, atol=1e-4)
    first = found[record.taps[0].name][0]
    np.testing.assert_array_equal(first[1], first[2])  # the one word stands in both spans


def test_graphs_are_within_the_runtimes_reach(image: tuple[TowerRecord, Path]) -> None:
    record, folder = image
    for segment in record.segments:
        model = onnx.load(str(folder / segment.file), load_external_data=False)
        assert model.ir_version <= 10
        assert all(o.version <= 21 for o in model.opset_import if o.domain in ("", "ai.onnx"))
        for tensor in [*segment.inputs, *segment.outputs]:
            assert tensor.dtype in ("float32", "int64")
        assert segment.activation_bytes > 0
    block = folder / record.segments[1].file
    assert block.with_suffix(".weights").stat().st_size > block.stat().st_size


def test_digest_names_weights_and_cut(
    openai: Backbone, image: tuple[TowerRecord, Path], tmp_path: Path
) -> None:
    again = written(openai, "image", tmp_path / "again")
    assert again.digest == image[0].digest
    other = TapConfig(count=2, grid=1)
    record = write_segments(
        openai, "image", resolve_taps(openai, "image", other), other, tmp_path / "other"
    )
    assert record.digest != again.digest


@pytest.mark.parametrize(("dtype", "limit"), [("fp16", 1e-2), ("int8-weights", 0.2)])
def test_narrow_weights_stay_close(
    openai: Backbone, image: tuple[TowerRecord, Path], tmp_path: Path, dtype: str, limit: float
) -> None:
    record = written(openai, "image", tmp_path, dtype)
    error = check_segments(openai, "image", record, TAPS, tmp_path, tolerance=limit)
    assert error > 1e-6  # they were narrowed
    sizes = [
        sum(path.stat().st_size for path in place.rglob("*.weights"))
        for place in (tmp_path, image[1])
    ]
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.parametrize("make", ["vit-b-16", "vit-b-32", "vit-b-16-custom-text"])
@pytest.mark.parametrize(
    ("dtype", "limit"), [("fp32", 1e-5), ("fp16", 2e-3), ("int8-weights", 0.05)]
)
def test_native_towers_pass_the_gate(make: str, dtype: str, limit: float, tmp_path: Path) -> None:
    """At a text's real length the causal mask is as large as a weight, and holds -inf."""
    backbone = small_backbone(make)
    for side in ("image", "text"):
        record = written(backbone, side, tmp_path, dtype)
        check_segments(backbone, side, record, TAPS, tmp_path, tolerance=limit)


def test_the_gate_names_what_disagrees(openai: Backbone, tmp_path: Path) -> None:
    record = written(openai, "image", tmp_path)
    path = tmp_path / record.segments[2].file
    weights = path.with_suffix(".weights")
    data = np.frombuffer(weights.read_bytes(), np.float32).copy()
    weights.write_bytes((data * 1.01).tobytes())
    with pytest.raises(EdgeLadderError, match="segments disagree with the model") as caught:
        check_segments(openai, "image", record, TAPS, tmp_path)
    assert "image tower of openai" in str(caught.value)
