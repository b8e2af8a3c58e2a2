"""Averages against plain numpy, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgeladder.core.adapter_record import (
    AdapterRecord,
    CalibrationRecord,
    GdaRecord,
    KnownRecord,
    StoredHead,
    read_adapter_record,
    write_adapter_record,
)
from edgeladder.core.errors import ConfigError, DataError, IntegrityError
from edgeladder.core.files import sha256_file
from edgeladder.fleet import admission
from edgeladder.fleet.aggregate import aggregate, bounded_weights, combine
from edgeladder.fleet.averaging import Averaging, Contribution, Start

HEAD = StoredHead(GdaRecord(weight=0.5, prior=1.0))


def adapter(
    folder: Path, name: str, values: dict[str, np.ndarray], **metadata: Any
) -> Contribution:
    (folder / name).mkdir(parents=True)
    save_file(values, str(folder / name / "adapter.safetensors"))
    pictures = metadata.pop("pictures", 1)
    sha256 = sha256_file(folder / name / "adapter.safetensors")
    said = {
        "sha256": sha256,
        "bundle_digest": "d",
        "ladder_digest": "l",
        "classes": ["a"],
        "head": HEAD,
        **metadata,
    }
    write_adapter_record(folder / name, AdapterRecord(**said))
    return Contribution(name, folder / name, pictures)


def boxes(folder: Path, count: int, seed: int = 0) -> tuple[list[Contribution], list[dict]]:
    rng = np.random.default_rng(seed)
    values = [
        {
            "w": rng.normal(size=(7, 5)).astype(np.float32),
            "b": rng.normal(size=9),
            "mask": np.array([True, False]),
        }
        for _ in range(count)
    ]
    made = [adapter(folder, f"box{n}", v, pictures=n + 1) for n, v in enumerate(values)]
    return made, values


def test_temperatures_meet_in_the_middle_and_a_boxs_pictures_stay_out(tmp_path: Path) -> None:
    """Known rows differ in number from box to box; a head's temperature is of no ladder alone."""
    rng = np.random.default_rng(0)
    values = [
        {"w": rng.normal(size=4), "known:support": rng.normal(size=(n, 3)).astype(np.float16)}
        for n in (2, 3, 4)
    ]
    for head in (None, HEAD):
        folder = tmp_path / str(head is None)
        made = [
            adapter(
                folder,
                f"box{n}",
                told,
                head=head,
                calibration=CalibrationRecord(temperature=temperature),
                known=KnownRecord(threshold=0.5),
            )
            for n, (told, temperature) in enumerate(zip(values, (2.0, 1e9, 3.0), strict=True))
        ]
        result = aggregate(made, folder / "out")
        assert not result.refused
        assert set(load_file(folder / "out" / "adapter.safetensors")) == {"w"}
        record = read_adapter_record(folder / "out")
        assert record.known is None
        middle = CalibrationRecord(temperature=3.0, ladder_temperature=3.0)
        expected = middle if head is None else None
        assert record.calibration == expected


def test_mean_weighs_by_pictures(tmp_path: Path) -> None:
    made, values = boxes(tmp_path, 4)  # 1, 2, 3 and 4 pictures
    result = aggregate(made, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter.safetensors")
    weights = np.array([1, 2, 3, 4]) / 10
    for name in ("w", "b"):
        expected = sum(w * v[name].astype(np.float64) for w, v in zip(weights, values, strict=True))
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
        assert found[name].dtype == values[0][name].dtype
    np.testing.assert_array_equal(found["mask"], [True, False])
    assert result.weights == pytest.approx({f"box{n}": (n + 1) / 10 for n in range(4)})
    metadata = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert metadata["head"] is None and metadata["bundle_digest"] == "d"


@pytest.mark.parametrize("method", ["median", "trimmed"])
def test_robust_methods_ignore_a_liar(tmp_path: Path, method: Any) -> None:
    made, values = boxes(tmp_path, 4)
    liar = {name: v + 5 if v.dtype.kind == "f" else v for name, v in values[0].items()}
    made.append(adapter(tmp_path, "liar", liar, pictures=10**6))
    aggregate(made, tmp_path / "out", Averaging(method=method))
    stack = np.stack([v["w"] for v in [*values, liar]]).astype(np.float64)
    ordered = np.sort(stack, axis=0)
    expected = ordered[2] if method == "median" else ordered[1:4].mean(axis=0)
    found = load_file(tmp_path / "out" / "adapter.safetensors")["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 40), st.sampled_from(["mean", "trimmed", "median"]))
def test_cutting_into_blocks_changes_nothing(boxes: int, size: int, method: Any) -> None:
    rng = np.random.default_rng(boxes * 100 + size)
    block, weights = rng.normal(size=(boxes, size)), rng.dirichlet(np.ones(boxes))
    whole = combine(block, weights, method, 0.2)
    cut = [combine(block[:, i : i + 3], weights, method, 0.2) for i in range(0, size, 3)]
    np.testing.assert_array_equal(whole, np.concatenate(cut))


def test_blocks_of_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = boxes(tmp_path, 3)
    aggregate(made, tmp_path / "whole", Averaging("trimmed"))
    monkeypatch.setattr(admission, "_BLOCK_VALUES", 7)
    aggregate(made, tmp_path / "cut", Averaging("trimmed"))
    whole = (tmp_path / "whole" / "adapter.safetensors").read_bytes()
    assert whole == (tmp_path / "cut" / "adapter.safetensors").read_bytes()


def test_refuses_one_by_one(tmp_path: Path) -> None:
    made, values = boxes(tmp_path, 4)

    def changed(**new: np.ndarray) -> dict[str, np.ndarray]:
        return {**values[0], **new}

    nan = values[0]["b"].copy()
    nan[3] = np.nan
    made += [
        adapter(tmp_path, "nan", changed(b=nan)),
        adapter(tmp_path, "far", changed(b=values[0]["b"] + 1e4)),
        adapter(tmp_path, "shape", changed(w=np.zeros((5, 7), np.float32))),
        adapter(tmp_path, "mask", changed(mask=np.array([True, True]))),
        adapter(tmp_path, "other", values[0], bundle_digest="e"),
        adapter(tmp_path, "empty", values[0], pictures=0),
        adapter(tmp_path, "torn", values[0]),
        Contribution("absent", tmp_path / "absent"),
    ]
    torn = tmp_path / "torn" / "adapter.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    result = aggregate(made, tmp_path / "out", bundle_digest="d")
    assert set(result.weights) == {f"box{n}" for n in range(4)}
    why = result.refused
    assert "NaN" in why["nan"] and "times as far off" in why["far"]
    assert "shape" in why["shape"] and "mask" in why["mask"]
    assert why["other"] == "of another bundle" and why["absent"] == "no adapter there"
    assert "no number of pictures" in why["empty"] and "names" in why["torn"]
    plain = aggregate(made[:4], tmp_path / "plain")
    assert plain.weights == result.weights
    assert (tmp_path / "out" / "adapter.safetensors").read_bytes() == (
        tmp_path / "plain" / "adapter.safetensors"
    ).read_bytes()


def test_a_count_that_no_box_can_have_is_refused(tmp_path: Path) -> None:
    values = {"w": np.ones(3, np.float32)}
    made = [adapter(tmp_path, f"b{n}", values, pictures=n) for n in (2, 3, 1e18, 1e308, 5)]
    result = aggregate(made, tmp_path / "out")
    assert list(result.refused) == ["b1e+18", "b1e+308"]
    assert "claims 1e+18 pictures" in result.refused["b1e+18"]
    assert result.weights == pytest.approx({"b2": 0.2, "b3": 0.3, "b5": 0.5})
    assert (load_file(tmp_path / "out" / "adapter.safetensors")["w"] == 1).all()
    few = aggregate(made, tmp_path / "few", Averaging(shots=4))  # of one class
    assert list(few.weights) == ["b2", "b3"] and "the 4 that 4 of each" in few.refused["b5"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1, 1e7), min_size=1, max_size=9))
def test_no_box_weighs_more_than_half(counts: list[float]) -> None:
    weights = bounded_weights(np.array(counts))
    assert weights.sum() == pytest.approx(1) and (weights > 0).all()
    if len(counts) == 1:
        assert weights.tolist() == [1]
        return
    assert weights.max() <= 0.5 + 1e-12
    share = np.array(counts) / sum(counts)
    if share.max() <= 0.5:
        np.testing.assert_allclose(weights, share)
    else:  # the others keep their proportions
        others = np.delete(np.arange(len(counts)), int(share.argmax()))
        np.testing.assert_allclose(
            weights[others] / weights[others].sum(), share[others] / share[others].sum()
        )


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("wild", [3e38, 1e7, 1e5])
def test_values_that_no_training_gives_are_refused_of_two_and_of_three(
    tmp_path: Path, wild: float, known: bool
) -> None:
    start = tmp_path / "start.safetensors"
    save_file({"w": np.zeros(4, np.float32)}, str(start))
    made = [
        adapter(tmp_path, "good", {"w": np.full(4, 0.5, np.float32)}),
        adapter(tmp_path, "wild", {"w": np.array([0.5, 0.5, 0.5, wild], np.float32)}),
        adapter(tmp_path, "fair", {"w": np.full(4, 0.7, np.float32)}),
    ]
    begun = Start(start) if known else Start()
    for count in (2, 3):
        out = tmp_path / f"out{count}"
        result = aggregate(made[:count], out, start=begun)
        why = result.refused["wild"]
        assert "parameters stay below" in why if wild > 1e6 else "times as far off" in why
        assert set(result.weights) == {"good", "fair"} & {c.name for c in made[:count]}
        assert load_file(out / "adapter.safetensors")["w"].max() <= 0.7


def test_weights_that_are_not_the_records_are_refused(tmp_path: Path) -> None:
    made, values = boxes(tmp_path, 3)
    swapped = adapter(tmp_path, "swapped", values[0])
    save_file({**values[1]}, str(tmp_path / "swapped" / "adapter.safetensors"))
    result = aggregate([*made, swapped], tmp_path / "out")
    assert "not those that its adapter.json names" in result.refused["swapped"]


def test_distance_from_the_start(tmp_path: Path) -> None:
    start = {"w": np.zeros(4, np.float32)}
    save_file(start, str(tmp_path / "start.safetensors"))
    made = [adapter(tmp_path, f"b{n}", {"w": np.full(4, n, np.float32)}) for n in (1, 1.5, 2, 50)]
    result = aggregate(
        made, tmp_path / "out", Averaging(bound=5.0), start=Start(tmp_path / "start.safetensors")
    )
    assert result.distances["b1"] == pytest.approx(2.0)
    assert list(result.refused) == ["b50"]


def test_what_a_start_leaves_out_began_at_zero_where_it_is_said(tmp_path: Path) -> None:
    save_file({"v": np.ones(1, np.float32)}, str(tmp_path / "start.safetensors"))
    made = [
        adapter(tmp_path, f"b{n}", {"v": np.ones(1, np.float32), "w": np.full(4, n, np.float32)})
        for n in (3, 4, 5)
    ]
    file = tmp_path / "start.safetensors"
    from_zero = aggregate(made, tmp_path / "zero", start=Start(file, ["v", "w"])).distances
    from_median = aggregate(made, tmp_path / "median", start=Start(file)).distances
    assert list(from_zero.values()) == pytest.approx([6.0, 8.0, 10.0])
    assert list(from_median.values()) == pytest.approx([2.0, 0.0, 2.0])


def test_mixed_bundles_are_refused_whole(tmp_path: Path) -> None:
    values = {"w": np.zeros(2, np.float32)}
    made = [
        adapter(tmp_path, "a", values),
        adapter(tmp_path, "b", values),
        adapter(tmp_path, "c", values, bundle_digest="e"),
    ]
    with pytest.raises(IntegrityError, match="c differ from the rest"):
        aggregate(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mixed_classes_without_a_majority(tmp_path: Path) -> None:
    values = {"w": np.zeros(2, np.float32)}
    made = [adapter(tmp_path, "a", values), adapter(tmp_path, "b", values, classes=["x"])]
    with pytest.raises(IntegrityError):
        aggregate(made, tmp_path / "out", bundle_digest="d")


@pytest.mark.parametrize(
    "words",
    [
        {"class_names": ["cat", "dog"]},
        {"templates": ["no {}"]},
        {"text": {"aliases": [["b"], ["a"]]}},
    ],
)
def test_no_box_renames_the_classes_of_the_others(tmp_path: Path, words: dict[str, Any]) -> None:
    """The first box's words were the average's, whatever the others said."""
    names = {"classes": ["a", "b"], "class_names": ["dog", "cat"]}
    values = {"w": np.ones(2, np.float32)}
    odd = adapter(tmp_path, "odd", values, **{**names, **words})
    made = [odd, *(adapter(tmp_path, name, values, **names) for name in "xy")]
    result = aggregate(made, tmp_path / "out", bundle_digest="d")
    assert result.refused == {"odd": "of other classes"}
    assert read_adapter_record(tmp_path / "out").class_names == ["dog", "cat"]
    with pytest.raises(IntegrityError, match="mixed bundles or classes"):
        aggregate(made[:2], tmp_path / "two", bundle_digest="d")


@pytest.mark.parametrize("odd", [1e9, 1e-9, float("inf")])
def test_a_temperature_that_one_of_two_made_up_is_in_no_average(tmp_path: Path, odd: float) -> None:
    values = {"w": np.ones(2, np.float32)}
    made = [
        adapter(tmp_path, str(t), values, head=None, calibration=CalibrationRecord(temperature=t))
        for t in (2.0, odd, 3.0)
    ]
    aggregate(made[:2], tmp_path / "two")
    assert read_adapter_record(tmp_path / "two").calibration is None
    aggregate(made, tmp_path / "three")
    found = read_adapter_record(tmp_path / "three").calibration
    assert found is not None and found.temperature in (2.0, 3.0)


@pytest.mark.parametrize("kind", ["folder", "pipe", "closed"])
def test_what_is_no_file_costs_its_box_alone(tmp_path: Path, kind: str) -> None:
    made, _ = boxes(tmp_path, 3)
    weights = made[0].folder / "adapter.safetensors"
    weights.unlink()
    if kind == "folder":
        weights.mkdir()
    elif kind == "pipe":
        os.mkfifo(weights)
    else:
        weights.symlink_to(weights.name)
    result = aggregate(made, tmp_path / "out")
    assert set(result.refused) == {"box0"} and set(result.weights) == {"box1", "box2"}


def test_the_first_of_two_does_not_say_what_tensors_there_are(tmp_path: Path) -> None:
    good = {"w": np.ones(2, np.float32)}
    made = [
        adapter(tmp_path, "odd", {"w": np.ones(3, np.float32)}),
        adapter(tmp_path, "good", good),
    ]

    def check(path: Path) -> None:
        if load_file(path)["w"].shape != (2,):
            raise ValueError("not the ladder's")

    result = aggregate(made, tmp_path / "out", check=check)
    assert result.refused == {"odd": "not the ladder's"} and result.weights == {"good": 1.0}


@pytest.mark.parametrize("content", [b"", b"junk" * 9, "nan", "folder"])
def test_a_start_that_is_none_is_said(tmp_path: Path, content: bytes | str) -> None:
    made, _ = boxes(tmp_path, 3)
    start = tmp_path / "start"
    if isinstance(content, bytes):
        start.write_bytes(content)
    elif content == "nan":
        save_file({"w": np.full((7, 5), np.nan, np.float32)}, str(start))
    else:
        start.mkdir()
    with pytest.raises(ConfigError, match="nothing that boxes began from"):
        aggregate(made, tmp_path / "out", start=Start(start))
    assert not (tmp_path / "out").exists()


def test_nothing_left(tmp_path: Path) -> None:
    made = [adapter(tmp_path, "a", {"w": np.array([np.inf], np.float32)})]
    with pytest.raises(DataError, match="NaN or infinity"):
        aggregate(made, tmp_path / "out")
    good = [adapter(tmp_path, "b", {"w": np.ones(1, np.float32)})]
    with pytest.raises(DataError, match="1 adapters are left, 2 are needed"):
        aggregate(good, tmp_path / "out", minimum=2)


@pytest.mark.parametrize(
    "options", [{"trim": 0.5}, {"trim": -0.1}, {"bound": 1.0}, {"bound": float("nan")}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Averaging(**options)
