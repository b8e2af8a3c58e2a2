"""The shipped model: its weights, and that its bundle is what today's code exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import DataError
from edgeladder.core.yaml_config import load_profile
from edgeladder.host.export import ExportOptions, export
from edgeladder.host.model import nano_model as nano
from edgeladder.runtime.towers.tokens import Tokenizer

SHIPPED = nano.folder() / "bundle"
_REMEDY = "the code exports something else by now: run tools/nano/export and commit the bundle"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that today's code makes of the shipped weights."""
    return export(
        "nano",
        None,
        load_profile("nano"),
        ExportOptions(engine="stock", dtype="int8-weights"),
        out=tmp_path_factory.mktemp("nano") / "bundle",
    )


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.open(SHIPPED)


def outputs(bundle: Bundle, side: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """Everything a tower's segments give for one input."""
    tower = bundle.manifest.image if side == "image" else bundle.manifest.text
    values = {"pixels" if side == "image" else "tokens": value}
    for segment in tower.segments:
        session = onnxruntime.InferenceSession(str(bundle.path(segment.file)))
        names = [tensor.name for tensor in segment.outputs]
        found = session.run(names, {t.name: values[t.name] for t in segment.inputs})
        values.update(zip(names, found, strict=True))
    wanted = {tower.embedding, *(tap.name for tap in tower.taps)}
    return {name: values[name] for name in sorted(wanted)}


def sample(bundle: Bundle, side: str) -> np.ndarray:
    if side == "text":
        return Tokenizer.from_bundle(bundle).encode(["a photo of a dog.", "long-sleeved shirt"])
    random = np.random.default_rng(0)
    coarse = random.normal(size=(2, 3, 7, 7)).astype(np.float32)
    return np.kron(coarse, np.ones((32, 32), np.float32))


@pytest.mark.parametrize("side", ["image", "text"])
def test_the_shipped_towers_are_what_the_code_exports(fresh, shipped, side):
    value = sample(shipped, side)
    np.testing.assert_array_equal(value, sample(fresh, side))
    mine, theirs = outputs(fresh, side, value), outputs(shipped, side, value)
    assert mine.keys() == theirs.keys()
    for name, expected in mine.items():
        np.testing.assert_allclose(
            theirs[name], expected, rtol=0, atol=1e-3 * np.abs(expected).max(), err_msg=_REMEDY
        )


def test_the_shipped_ladder_is_what_the_code_exports(fresh, shipped):
    mine, theirs = fresh.manifest, shipped.manifest
    assert mine.profile == theirs.profile, _REMEDY
    assert mine.ladder.parameters == theirs.ladder.parameters, _REMEDY
    assert mine.preprocess == theirs.preprocess, _REMEDY
    from safetensors.numpy import load_file

    for name in (mine.ladder.initial, mine.ladder.golden):
        expected, found = load_file(fresh.path(name)), load_file(shipped.path(name))
        assert expected.keys() == found.keys(), _REMEDY
        for key, value in expected.items():
            tolerance = 1e-4 * max(1.0, float(np.abs(value).max(initial=0)))
            np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance, err_msg=_REMEDY)


def test_int8_in_the_bundle_costs_nothing_on_top_of_int8_weights(shipped):
    network = nano.load().model
    value = sample(shipped, "image")
    with torch.no_grad():
        expected = network.visual(torch.from_numpy(value)).numpy()
    found = outputs(shipped, "image", value)[shipped.manifest.image.embedding]
    cosine = (found * expected).sum(1)
    assert cosine.min() > 0.999


def test_it_knows_words_from_one_another():
    network = nano.load().model
    library = nano.tokenizer(nano.vocabulary())

    def vector(text: str) -> torch.Tensor:
        words = nano.vocabulary()
        ids = [words.index("[START]"), *library.encode(text).ids, words.index("[END]")]
        tokens = torch.zeros(1, nano.CONTEXT, dtype=torch.int64)
        tokens[0, : len(ids)] = torch.tensor(ids)
        with torch.no_grad():
            return network.encode_text(tokens)[0]

    kitten = vector("kitten")
    assert kitten @ vector("cat") > kitten @ vector("truck") + 0.1
    assert vector("a photo of a cat.") @ vector("cat") > 0.8
    assert torch.isfinite(vector("zzqx 😀")).all()


def test_the_three_parts_weigh_what_they_should():
    head = nano.TextHead(8)
    head.balance.data = torch.tensor([0.2, 0.5, 0.3])
    found = head(torch.randn(3, 8)).detach()
    for part, share in zip(found.split(nano.PART, dim=1), [0.2, 0.5, 0.3], strict=True):
        torch.testing.assert_close(part.square().sum(1), torch.full((3,), share))


def test_weights_survive_being_written(tmp_path: Path):
    from safetensors.torch import save_file

    network = nano.build(len(nano.vocabulary()))
    save_file(nano.narrow_weights(network), tmp_path / "weights.safetensors")
    found = nano.read_weights(tmp_path / "weights.safetensors")
    expected = network.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        largest = float(value.abs().max()) if value.numel() else 0.0
        assert (found[name].float() - value.float()).abs().max() <= largest / 127


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not the weights of nano"):
        nano.load(str(path))


def test_what_ships_stays_small():
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 14e6
    assert sum(p.stat().st_size for p in nano.folder().rglob("*") if p.is_file()) <= 24e6
    assert (nano.folder() / "pictures.zip").stat().st_size <= 3e6
