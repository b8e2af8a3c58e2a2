"""Predicting, evaluating and deploying a run, on the tiny bundle."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeladder.core.adapter_record import RECORD, CalibrationRecord, KnownRecord, StoredHead
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, DataError, EdgeLadderError, IntegrityError
from edgeladder.core.inference import Form
from edgeladder.core.intervals import wilson
from edgeladder.core.records import to_json
from edgeladder.runtime import deploy_graph, deployment, evaluation, prediction
from edgeladder.runtime.adapter import load_adapter, save_adapter
from edgeladder.runtime.classifier import Classifier, probabilities
from edgeladder.runtime.evaluation import EVALUATION, Judged
from edgeladder.runtime.heads.closed_form import fit_head, head_arrays
from edgeladder.runtime.heads.kernel import normalise
from edgeladder.runtime.known import ROWS
from edgeladder.runtime.logits import Activations, softmax
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.pictures.decode import decode_square
from edgeladder.runtime.pictures.drawn import drawn_pictures
from edgeladder.runtime.run_folder import run_bundle
from edgeladder.runtime.session import open_plain, open_session
from tests.runtime.infer.conftest import CLASSES


def predict(*given, **named):
    """The JSON of `predict`."""
    return to_json(prediction.predict(*given, **named))


def evaluate(run, **judged):
    """The JSON of `evaluate`."""
    return to_json(evaluation.evaluate(run, Judged(**judged)))


def deploy(*given, **named):
    """The JSON of `deploy`."""
    return to_json(deployment.deploy(*given, **named))


KINDS = [None, "gda", "proker", "kernel", "blend"]


def calibrate(run: Path, temperature: float, alone: float = 1.0) -> None:
    """Give the run's adapter a temperature, and its ladder one."""
    adapter = load_adapter(run)
    told = CalibrationRecord(temperature=temperature, ladder_temperature=alone)
    adapter.record = replace(adapter.record, calibration=told)
    save_adapter(run, adapter)


def give_head(run: Path, kind: str | None) -> None:
    """Fit a head on random activations of the bundle's shapes and store it in the adapter."""
    if kind is None:
        return
    adapter = load_adapter(run)
    with Classifier.open(run) as classifier:
        manifest = classifier.bundle.manifest
        generator = np.random.default_rng(0)
        taps = [
            generator.normal(size=(len(g.taps), g.tokens, 12, g.width))
            for g in manifest.ladder.groups
            if g.side == "image"
        ]
        embedding = generator.normal(size=(12, manifest.model.embedding_dim))
    features = Activations(taps, embedding).features()
    head = fit_head(kind, features, np.repeat(np.arange(3), 4), generator.normal(size=(12, 3)))
    adapter.head_arrays, rule = head_arrays(head)
    if kind == "kernel":  # every tap takes part
        rule = replace(rule, weights=(0.3,) * len(features))
        full = {f"centre.{t}": normalise(f).mean(0) for t, f in enumerate(features)}
        full |= {f"support.{t}": np.float16(normalise(f)) for t, f in enumerate(features)}
        adapter.head_arrays |= full
    adapter.record = replace(adapter.record, head=StoredHead(rule, 0.7))
    save_adapter(run, adapter)


def give_known(run: Path, pictures: Path, reads: tuple[int, ...]) -> None:
    """Let the run's adapter know five of the pictures, half of the first seven by its threshold."""
    squares = squares_of(pictures, Bundle.open(run_bundle(run)))[[0, 3, 9, 14, 20]]
    found: list[list[np.ndarray]] = []
    with Classifier.open(run) as classifier:
        classifier._each_batch(squares, lambda given: found.append(given.features()))
    features = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    rows = normalise(np.concatenate([normalise(features[k]) for k in reads], axis=1))
    adapter = load_adapter(run)
    adapter.known_arrays = {ROWS: rows.astype(np.float16)}
    record = KnownRecord(threshold=0.0, reads=reads)
    adapter.record = replace(adapter.record, known=record)
    save_adapter(run, adapter)
    scores = [p["known"] for p in predict(run, sorted(pictures.rglob("*.png"))[:7])["predictions"]]
    threshold = float(np.median(scores)) + 1e-6
    adapter.record = replace(adapter.record, known=replace(record, threshold=threshold))
    save_adapter(run, adapter)


def squares_of(folder: Path, bundle: Bundle) -> np.ndarray:
    paths = sorted(folder.rglob("*.png"))
    return np.stack([decode_square(p.read_bytes(), bundle.manifest.preprocess) for p in paths])


def test_labels_for_files_folders_and_archives(run_folder, picture_folder, tmp_path):
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.write(picture_folder / "class0" / "picture0.png", "in/a.png")
        stream.writestr("in/notes.txt", "no picture")
    one = picture_folder / "class1" / "picture3.png"
    found = predict(run_folder, [one, picture_folder, archive], top=2)["predictions"]
    assert len(found) == 1 + 24 + 1
    assert found[0]["path"] == str(one) and found[-1]["path"] == f"{archive}/in/a.png"
    for item in found:
        assert item["error"] is None
        shares = [entry["probability"] for entry in item["labels"]]
        assert len(shares) == 2 and shares == sorted(shares, reverse=True)
        assert {entry["label"] for entry in item["labels"]} <= set(CLASSES)
    same = [i for i in found if i["path"].endswith(("class0/picture0.png", "in/a.png"))]
    assert same[0]["labels"][0]["probability"] == pytest.approx(
        same[1]["labels"][0]["probability"], abs=1e-5
    )


def test_a_bad_picture_does_not_stop_the_others(run_folder, picture_folder):
    good = picture_folder / "class0" / "picture0.png"
    cut = picture_folder / "class0" / "cut.png"
    cut.write_bytes(good.read_bytes()[:80])
    missing = picture_folder / "gone.png"
    found = predict(run_folder, [cut, good, missing], top=99)["predictions"]
    assert [bool(item["error"]) for item in found] == [True, False, True]
    assert found[0]["labels"] == []
    assert len(found[1]["labels"]) == 3
    assert sum(e["probability"] for e in found[1]["labels"]) == pytest.approx(1, abs=1e-5)


def test_predict_refuses_what_it_cannot_do(run_folder, picture_folder, tmp_path):
    with pytest.raises(ConfigError, match="--top 0"):
        predict(run_folder, [picture_folder], top=0)
    with pytest.raises(ConfigError, match="no pictures were named"):
        predict(run_folder, [])
    with pytest.raises(ConfigError, match="adapter.safetensors is missing"):
        predict(tmp_path, [picture_folder])
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match="none of the 1 pictures"):
        predict(run_folder, [tmp_path / "text.png"])
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(DataError, match="no pictures in this archive"):
        predict(run_folder, [empty])


def test_another_bundle_is_refused(run_folder, bundle_copy, picture_folder):
    manifest = bundle_copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"licence": "', '"licence": "changed '))
    with pytest.raises(IntegrityError, match="belongs to another bundle"):
        predict(run_folder, [picture_folder], bundle=bundle_copy)


def test_the_run_whose_bundle_is_gone_says_so(run_folder, picture_folder):
    config = run_folder / "config.yaml"
    config.write_text("request: {bundle: /nowhere/bundle}")
    with pytest.raises(ConfigError, match="not at /nowhere/bundle") as caught:
        predict(run_folder, [picture_folder])
    assert "--bundle" in caught.value.remedy


def test_evaluation_agrees_with_prediction(run_folder, picture_folder):
    result = evaluate(run_folder, data=picture_folder, split="train")
    assert result["split"] == "train"
    whole = evaluate(run_folder)
    assert whole["split"] == "test" and whole["count"] + result["count"] == 24
    assert json.loads((run_folder / EVALUATION).read_text()) == whole
    found = predict(run_folder, [picture_folder])["predictions"]
    hits = sum(i["labels"][0]["label"] == Path(i["path"]).parent.name for i in found)
    right = sum(r["accuracy"] * r["count"] for r in (whole, result))
    assert right == pytest.approx(hits)
    assert sum(map(sum, whole["confusion"])) == whole["count"]


def test_foreign_pictures_are_judged_whole_and_unknown_labels_refused(run_folder, tmp_path):
    from tests.conftest import make_pictures

    other = make_pictures(tmp_path / "other", classes=2, count=3)
    result = evaluate(run_folder, data=other)
    assert (result["split"], result["count"]) == ("all", 6)
    assert result["per_class"]["class2"] == {
        "count": 0,
        "accuracy": None,
        "zero_shot_accuracy": None,
        "interval": None,
        "zero_shot_interval": None,
    }
    (other / "class1").rename(other / "class_1")
    with pytest.raises(DataError, match="'class_1' is not among the 3 known classes") as caught:
        evaluate(run_folder, data=other)
    assert "class1" in caught.value.remedy


def test_too_many_unreadable_pictures_are_an_error(run_folder, tmp_path):
    from tests.conftest import make_pictures

    other = make_pictures(tmp_path / "other", classes=3, count=8)
    (other / "class0" / "picture0.png").write_bytes(b"nothing")
    result = evaluate(run_folder, data=other)
    assert [item["path"] for item in result["skipped"]] == ["class0/picture0.png"]
    assert result["count"] == 23
    (other / "class0" / "picture1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="2 of 24 pictures cannot be read"):
        evaluate(run_folder, data=other)


def test_an_unknown_split_is_refused(run_folder):
    with pytest.raises(ConfigError, match="unknown split 'tset'"):
        evaluate(run_folder, split="tset")


@pytest.mark.parametrize("kind", KINDS)
def test_the_deployed_file_is_predict(run_folder, bundle_folder, picture_folder, tmp_path, kind):
    give_head(run_folder, kind)
    give_known(run_folder, picture_folder, (-2, -1))
    calibrate(run_folder, 2.5)
    out = tmp_path / "model.onnx"
    result = deploy(run_folder, out)
    assert result["bytes"] == out.stat().st_size
    session = open_session(out, threads=1)
    squares = squares_of(picture_folder, Bundle.open(bundle_folder))[:7]
    assert [output.name for output in session.get_outputs()] == ["probabilities", "known"]
    given, scores = session.run(None, {"picture": squares})
    expected = predict(run_folder, sorted(picture_folder.rglob("*.png"))[:7], top=3)
    known = [item["known"] for item in expected["predictions"]]
    np.testing.assert_allclose(scores, known, atol=1e-4)
    assert [item["unknown"] for item in expected["predictions"]] == [
        score < result["known_threshold"] for score in known
    ]
    assert len({item["unknown"] for item in expected["predictions"]}) == 2
    for shares, item in zip(given, expected["predictions"], strict=True):
        for entry in item["labels"]:
            index = CLASSES.index(entry["label"])
            assert shares[index] == pytest.approx(entry["probability"], abs=1e-4)
    described = session.get_modelmeta().custom_metadata_map
    assert json.loads(described["classes"]) == CLASSES
    np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-5)
    assert np.abs(given - 1 / 3).max() > 1e-3  # not the same answer for everything


def test_evaluate_judges_the_probabilities_that_predict_gives(run_folder, picture_folder):
    """Without the temperature in either place the errors would differ."""
    give_head(run_folder, "gda")
    errors = []
    for temperature in (0.05, 4.0):
        calibrate(run_folder, temperature)
        judged = evaluate(run_folder, data=picture_folder, split="train")
        told = judged["calibration"]
        dataset = open_data(picture_folder)
        paths = [picture_folder / p.path for p in split(dataset, None, 0)[0]]
        found = predict(run_folder, paths, top=3)["predictions"]
        shares = np.array([i["labels"][0]["probability"] for i in found])
        right = np.array([i["labels"][0]["label"] == Path(i["path"]).parent.name for i in found])
        place = np.minimum((shares * 15).astype(int), 14)
        error = sum(
            abs(shares[place == k].sum() - right[place == k].sum()) for k in range(15)
        ) / len(found)
        assert told["expected_error"] == pytest.approx(error, abs=1e-5)
        assert [b["count"] for b in told["bins"]] == [int((place == k).sum()) for k in range(15)]
        own = [
            -np.log(next(e["probability"] for e in i["labels"] if e["label"] == name))
            for i, name in ((i, Path(i["path"]).parent.name) for i in found)
        ]
        if temperature > 1:
            assert told["negative_log_likelihood"] == pytest.approx(np.mean(own), rel=1e-4)
        assert judged["interval"] == list(wilson(int(right.sum()), len(found)))
        errors.append(error)
    assert abs(errors[0] - errors[1]) > 0.05


def test_of_other_names_the_known_pictures_say_nothing(run_folder, picture_folder):
    give_known(run_folder, picture_folder, (-1,))
    (item,) = predict(run_folder, [picture_folder / "class0" / "picture0.png"])["predictions"]
    assert item["known"] is not None
    (item,) = predict(
        run_folder, [picture_folder / "class0" / "picture0.png"], classes="class0,a boat"
    )["predictions"]
    assert (item["known"], item["unknown"]) == (None, False)


@pytest.mark.parametrize("kind", [None, "gda"])
def test_a_temperature_tempers_predict_and_the_deployed_file(
    run_folder, bundle_folder, picture_folder, tmp_path, kind
):
    give_head(run_folder, kind)
    squares = squares_of(picture_folder, Bundle.open(bundle_folder))[:5]
    with Classifier.open(run_folder) as classifier:
        sharp = classifier.logits(squares)
    calibrate(run_folder, 3.0)
    expected = softmax(sharp / 3.0)
    found = predict(run_folder, sorted(picture_folder.rglob("*.png"))[:5], top=3)["predictions"]
    for shares, item in zip(expected, found, strict=True):
        told = {entry["label"]: entry["probability"] for entry in item["labels"]}
        assert [told[name] for name in CLASSES] == pytest.approx(shares, abs=1e-4)
    deploy(run_folder, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", threads=1)
    given = session.run(["probabilities"], {"picture": squares})[0]
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.01), ("int8-weights", 0.1)])
def test_small_weights_stay_close(run_folder, tmp_path, dtype, tolerance):
    whole = deploy(run_folder, tmp_path / "whole.onnx")
    small = deploy(run_folder, tmp_path / "small.onnx", Form(dtype=dtype))
    assert small["weights"] > 0
    assert small["bytes"] < whole["bytes"]
    assert whole["difference"] < 1e-4 < small["difference"] < tolerance  # of logits


def test_a_wrong_logit_of_an_impossible_class_is_seen(run_folder, tmp_path, monkeypatch):
    """Its probability is zero either way, so probabilities would not tell."""
    right = Classifier.answers

    def wrong(self, squares):
        logits, known = right(self, squares)
        logits[:, 1] += 500
        logits[:, 2] -= 500
        shares = probabilities(logits)
        logits[:, 2] -= 100
        assert np.abs(probabilities(logits) - shares).max() == 0
        return logits, known

    graph = deployment.assemble

    def as_wrong(*given):
        made = graph(*given)
        shift = made.constant("shift", np.array([0, 500, -500], np.float32))
        softmax = made.nodes.pop()
        shifted = made.add("Add", [deploy_graph.input_of(softmax), shift])
        made.add("Softmax", [shifted], deploy_graph.PROBABILITIES, {"axis": -1})
        return made

    monkeypatch.setattr(Classifier, "answers", wrong)
    monkeypatch.setattr(deployment, "assemble", as_wrong)
    with pytest.raises(EdgeLadderError, match="the file's logits differ from predict's by 1e\\+02"):
        deploy(run_folder, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*model*"))


def test_the_file_is_compared_on_the_runs_pictures(run_folder, picture_folder, tmp_path):
    deployed = deploy(run_folder, tmp_path / "model.onnx")
    assert deployed["compared"] == {"pictures": 8, "origin": "data"}
    session = open_plain(tmp_path / "model.onnx", threads=1)
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    picture_folder.rename(tmp_path / "elsewhere")
    again = deploy(run_folder, tmp_path / "model.onnx")
    assert again["compared"] == {"pictures": 8, "origin": "synthetic"}
    assert 0 < again["difference"] < 1e-4
    with Classifier.open(run_folder) as classifier:
        size = classifier.bundle.manifest.preprocess.size
        logits = classifier.logits(drawn_pictures(size))
    assert np.abs(logits[0] - logits[1:]).max(axis=1).min() > 1e-3  # no two drawn ones are alike


def test_an_unknown_dtype_is_refused_and_a_failed_file_never_appears(
    run_folder, tmp_path, monkeypatch
):
    with pytest.raises(ConfigError, match="unknown dtype 'fp61'") as caught:
        deploy(run_folder, tmp_path / "model.onnx", Form(dtype="fp61"))
    assert "'fp16'" in caught.value.remedy
    with pytest.raises(ConfigError, match="decided when a bundle is exported") as caught:
        deploy(run_folder, tmp_path / "model.onnx", Form(dtype="int8"))
    assert "--dtype int8-weights" in caught.value.remedy
    monkeypatch.setattr("edgeladder.runtime.deployment.TOLERANCE", -1.0)
    with pytest.raises(Exception, match="differ from predict's"):
        deploy(run_folder, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx")) and not list(tmp_path.glob(".model*"))


def test_an_adapter_without_a_record_is_no_run(run_folder, picture_folder):
    (run_folder / RECORD).unlink()
    with pytest.raises(ConfigError, match="adapter.json is missing"):
        evaluate(run_folder, data=picture_folder)


@pytest.mark.parametrize("kind", [None, "gda"])
@pytest.mark.parametrize("asked", ["a boat,a horse", "class0,class2,a boat"])
def test_new_names_have_the_ladders_temperature(
    run_folder, bundle_folder, picture_folder, tmp_path, kind, asked
):
    give_head(run_folder, kind)
    paths, names = sorted(picture_folder.rglob("*.png"))[:5], asked.split(",")

    def found():
        items = predict(run_folder, paths, top=9, classes=asked)["predictions"]
        told = [{e["label"]: e["probability"] for e in item["labels"]} for item in items]
        return np.array([[shares[name] for name in names] for shares in told])

    sharp = np.log(found())
    calibrate(run_folder, 7.0 if kind else 3.0, 3.0)
    soft = np.log(found())
    if "class0" not in names:
        np.testing.assert_allclose(np.diff(soft), np.diff(sharp) / 3.0, rtol=1e-3, atol=1e-4)
    assert np.abs(soft - sharp).max() > 0.1
    deploy(run_folder, tmp_path / "model.onnx", classes=asked)
    session = open_session(tmp_path / "model.onnx", threads=1)
    squares = squares_of(picture_folder, Bundle.open(bundle_folder))[:5]
    (given,) = session.run(["probabilities"], {"picture": squares})
    np.testing.assert_allclose(given, np.exp(soft), atol=1e-4)
