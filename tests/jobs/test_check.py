"""`check` as it is typed: under a budget, from the cache, a page, and decisions applied."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeladder.cli.app import main
from edgeladder.core.review import Review, Suspect
from edgeladder.report.review_page import write_review


@pytest.fixture
def place(tmp_path: Path, bundle_folder: Path, picture_folder: Path, monkeypatch) -> list[str]:
    """Options of a check of pictures with one wrong label and one picture in two classes."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(5)
    pixels = random.integers(0, 120, (40, 40, 3), dtype=np.uint8)
    pixels[..., 2] += 100  # as class2 is
    Image.fromarray(pixels).save(picture_folder / "class0" / "<b>wrong.png")
    shutil.copy(picture_folder / "class1/picture0.png", picture_folder / "class0/again.png")
    (picture_folder / "unlabelled").mkdir()
    shutil.copy(picture_folder / "class1/picture0.png", picture_folder / "unlabelled/9.png")
    return ["--bundle", str(bundle_folder), "--data", str(picture_folder)]


def answer(capfd, *arguments: str) -> tuple[int, dict]:
    capfd.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_a_check_finds_says_and_moves_what_a_person_decides(place, picture_folder, capfd):
    told = ["check", *place, "--page", "c.html", "--decisions", "d.csv", "--budget", "600MB"]
    code, found = answer(capfd, *told)
    assert code == 0, found
    assert found["count"] == 26 and found["new"] == 25  # one content is there twice
    assert found["classes"] == ["class0", "class1", "class2"]
    wrong = [s for s in found["suspects"] if s["path"] == "class0/<b>wrong.png"]
    assert wrong and wrong[0]["suggested"] == "class2"
    (group,) = [g for g in found["duplicates"] if g["kind"] == "identical"]
    assert [p["path"] for p in group["pictures"]] == ["class0/again.png", "class1/picture0.png"]
    assert {item["label"] for item in found["small_classes"]} <= set(found["classes"])
    peak = found["memory"]["phases"]["check"]
    assert peak["measured_peak_bytes"] <= 1.1 * peak["planned_peak_bytes"]
    assert "thumbnails" not in found
    page = Path("c.html").read_text()
    assert "<b>wrong" not in page and "&lt;b&gt;wrong" in page and "data:image/jpeg" in page

    with open("d.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["decision"] = row["suggested"] if row["path"] == "class0/<b>wrong.png" else ""
    with open("d.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    code, moved = answer(capfd, "check", *place, "--fix", "d.csv")
    assert moved["moved"] == [{"from": "class0/<b>wrong.png", "to": "class2/<b>wrong.png"}]
    assert answer(capfd, "check", *place)[1]["new"] == 0  # known by content, wherever it lies
    assert answer(capfd, "check", *place, "--undo")[1]["undone"]
    assert (picture_folder / "class0/<b>wrong.png").is_file()
    assert answer(capfd, "check", *place, "--undo")[0] == 2


def test_what_does_not_fit_or_is_not_there_is_said(place, tmp_path, capfd):
    code, found = answer(capfd, "check", *place, "--budget", "50MB")
    assert code == 3 and found["error"]["minimum_budget_bytes"]
    assert answer(capfd, "check", *place[:2], "--data", "nowhere")[0] == 2
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert answer(capfd, "check", *place, "--page", "mine.html")[0] == 2
    assert answer(capfd, "check", *place, "--fix", "a.csv", "--undo")[0] == 2


def test_a_page_without_pictures_is_smaller_and_bounded(tmp_path):
    many = [
        Suspect(path=f"a/{k}.jpg", label="a", probability=0.0, suggested="b",
                suggested_probability=1.0)
        for k in range(5000)
    ]  # fmt: skip
    found = Review(
        count=5000, classes=["a", "b"], suspects=many, suspected=5000, duplicates=[], repeated=0,
        confused=[], few=8, small_classes=[], skipped=[{"path": "x", "reason": "<i>"}],
        thumbnails={"a/0.jpg": "QUJD"},
    )  # fmt: skip
    with_pictures = write_review(tmp_path / "p.html", found).read_text()
    without = write_review(tmp_path / "p.html", found, pictures=False).read_text()
    assert "QUJD" in with_pictures and "QUJD" not in without
    assert len(with_pictures) < 100_000 and "<i>" not in without
