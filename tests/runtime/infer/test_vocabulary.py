"""Names that training never saw: predicted, judged and deployed beside those it did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeladder.core.adapter_record import AdapterRecord
from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.inference import AskedClasses
from edgeladder.runtime.classifier import Classifier, InferenceSizes
from edgeladder.runtime.deployment import deploy
from edgeladder.runtime.evaluation import EVALUATION, Judged, evaluate
from edgeladder.runtime.pictures.class_names import ClassName
from edgeladder.runtime.prediction import predict
from edgeladder.runtime.vocabulary import Vocabulary, asked_classes
from tests.conftest import make_pictures
from tests.runtime.infer.conftest import CLASSES
from tests.runtime.infer.test_predict import KINDS, give_head, squares_of

RECORD = AdapterRecord(
    bundle_digest="",
    ladder_digest="",
    classes=["hat", "longsleeve", "top"],
    class_names=["sun hat", "shirt", "shirt"],
    templates=["a {} on a peg."],
    text={"aliases": [["cap"]]},
)


def logits_of(run: Path, pictures: Path, classes: str | None, **sizes: int) -> np.ndarray:
    with Classifier.open(run, classes=classes, sizes=InferenceSizes(**sizes)) as classifier:
        return classifier.logits(squares_of(pictures, classifier.bundle)[::6])


def test_a_trained_name_says_what_it_said_to_the_run():
    asked = asked_classes(" longsleeve, sun hat,gnu_calf ", RECORD)
    assert asked.classes == ["longsleeve", "hat", "gnu_calf"]  # a readable name is its folder
    assert asked.names == [
        ClassName("shirt"),
        ClassName("sun hat", ("cap",)),
        ClassName("gnu calf"),
    ]
    assert (asked.trained, asked.own) == ([1, 0, None], False)
    assert asked.prompts()[1] == ["a sun hat on a peg.", "a cap on a peg."]
    assert asked_classes("shirt,hat", RECORD).trained == [None, 0]  # two are called so: neither
    assert asked_classes("hat,longsleeve,top", RECORD) == Vocabulary.of_run(RECORD)


def test_a_file_gives_names_aliases_and_templates(tmp_path):
    path = tmp_path / "farm.yaml"
    path.write_text(
        "templates: ['the {}.']\ncow: {name: milk cow, aliases: [cattle]}\nhat: bonnet\n"
    )
    asked = asked_classes(str(path), RECORD)
    assert asked.prompts() == [["the milk cow.", "the cattle."], ["the bonnet."]]
    assert asked.trained == [None, 0]
    path.write_text("cow: {nam: x}\nhat: hat\n")
    with pytest.raises(DataError, match="unknown key 'nam' @ cow"):
        asked_classes(str(path), RECORD)


def test_pictures_give_their_folders_and_what_lies_beside_them(tmp_path):
    folder = make_pictures(tmp_path / "p", classes=2, count=1)
    (folder / "class0").rename(folder / "hat")
    (folder / "classes.yaml").write_text("class1: pitchfork")
    asked = asked_classes(str(folder), RECORD)
    assert asked.classes == ["class1", "hat"]
    assert asked.names == [ClassName("pitchfork"), ClassName("sun hat", ("cap",))]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("", "no class is nothing to choose among"),
        ("cow", "'cow' alone is nothing to choose among"),
        ("cow,hat,cow", "class 'cow' is there twice"),
        ("hat,sun hat", "class 'hat' is there twice"),
        ("farm.yaml", "there is no such file"),
    ],
)
def test_what_is_no_vocabulary_is_refused(told, message):
    with pytest.raises(ConfigError, match=message) as caught:
        asked_classes(told, RECORD)
    assert caught.value.exit_code == 2 and caught.value.remedy


@pytest.mark.parametrize("kind", KINDS)
def test_some_trained_classes_keep_their_logits(run_folder, picture_folder, kind):
    give_head(run_folder, kind)
    whole = logits_of(run_folder, picture_folder, None)
    np.testing.assert_array_equal(logits_of(run_folder, picture_folder, ",".join(CLASSES)), whole)
    some = logits_of(run_folder, picture_folder, "class2,class0")
    np.testing.assert_allclose(some, whole[:, [2, 0]], atol=1e-4 * max(1, np.abs(whole).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_orders_its_own_classes_and_the_ladder_sets_their_height(
    run_folder, picture_folder, tmp_path, kind
):
    told = "class2,zebra,class0,gnu"
    ladder = logits_of(run_folder, picture_folder, told)  # there is no head yet
    give_head(run_folder, kind)
    found = logits_of(run_folder, picture_folder, told)
    whole = logits_of(run_folder, picture_folder, None)
    np.testing.assert_allclose(found[:, [1, 3]], ladder[:, [1, 3]], atol=1e-5)
    close = {"atol": 1e-4 * max(1, np.abs(whole).max())}
    own = found[:, [0, 2]]
    np.testing.assert_allclose(own.max(1), ladder[:, [0, 2]].max(1), **close)
    np.testing.assert_allclose(own[:, 0] - own[:, 1], whole[:, 2] - whole[:, 0], **close)
    deployed = deploy(run_folder, tmp_path / "model.onnx", classes=told)  # compares with these
    assert deployed.classes == ["class2", "zebra", "class0", "gnu"]
    head = "own" if kind else "none"
    assert deployed.asked == AskedClasses(count=4, new=["zebra", "gnu"], head=head)


def test_only_new_names_leave_the_ladder_alone(run_folder, picture_folder):
    ladder = logits_of(run_folder, picture_folder, "zebra,gnu")
    give_head(run_folder, "blend")
    np.testing.assert_array_equal(logits_of(run_folder, picture_folder, "zebra,gnu"), ladder)
    found = predict(run_folder, [picture_folder], top=2, classes="zebra,gnu")
    assert found.asked == AskedClasses(count=2, new=["zebra", "gnu"], head="none")
    assert {label.label for item in found.predictions for label in item.labels} == {"zebra", "gnu"}


def test_names_pass_the_towers_in_groups_of_whole_classes(run_folder, picture_folder):
    told = ",".join(f"thing {number}" for number in range(7))
    whole = logits_of(run_folder, picture_folder, told)
    for sizes in ({"text_group": 1}, {"text_group": 3, "class_chunk": 2}):
        found = logits_of(run_folder, picture_folder, told, **sizes)
        np.testing.assert_allclose(found, whole, atol=1e-4)


def test_new_pictures_are_judged_among_their_own_classes(run_folder, tmp_path):
    new = make_pictures(tmp_path / "new", classes=2, count=3)
    for old, name in (("class0", "cow"), ("class1", "gnu")):
        (new / old).rename(new / name)
    with pytest.raises(DataError, match="label 'cow' is not among the 3 known classes") as caught:
        evaluate(run_folder, Judged(data=new))
    assert "--classes" in (caught.value.remedy or "")
    found = evaluate(run_folder, Judged(data=new), classes=str(new))
    assert (found.classes, found.count) == (["cow", "gnu"], 6)
    assert found.accuracy is not None and found.zero_shot_accuracy is not None
    assert found == evaluate(run_folder, Judged(data=new), classes="cow,gnu")
    with pytest.raises(DataError, match="label 'gnu' is not among the 2 known") as caught:
        evaluate(run_folder, Judged(data=new), classes="cow,yak")
    assert caught.value.exit_code == 4


def test_the_report_keeps_the_accuracy_among_the_trained_classes(run_folder):
    kept = evaluate(run_folder)
    evaluate(run_folder, classes="class0,class1,class2,zebra")
    written = json.loads((run_folder / EVALUATION).read_text())
    assert written["classes"] == kept.classes == CLASSES
