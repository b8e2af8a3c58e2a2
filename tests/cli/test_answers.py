"""`predict -` and `--csv`: what goes in by a pipe, and rows that come out."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgeladder.cli import csv_text, inference_commands, train_commands
from edgeladder.cli.app import main
from edgeladder.cli.from_stdin import is_picture, paths_in, spelt_out
from edgeladder.core.errors import ConfigError, DataError


class Stdin:
    """sys.stdin with these bytes in it."""

    def __init__(self, content: bytes):
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_pictures_bytes_are_known(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, kind)
    assert is_picture(stream.getvalue())
    assert not is_picture(b"one.jpg\nBig/two.jpg\n")


def test_paths_are_one_a_line_or_between_nuls() -> None:
    assert paths_in(b"a.jpg\nb c.jpg\r\n\n") == ["a.jpg", "b c.jpg"]
    assert paths_in(b"a\nb.jpg\0c.jpg\0") == ["a\nb.jpg", "c.jpg"]
    assert os.fsencode(paths_in(b"\xff.jpg")[0]) == b"\xff.jpg"


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_nothing_on_stdin_is_refused(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    with pytest.raises(DataError, match="nothing came"), spelt_out([Path("-")]):
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The paths that the worker would be given; it answers with two labels for each."""
    seen: list[str] = []

    def answer(command: str, told: dict, *_: object) -> dict:
        seen.extend(told["paths"])
        labels = [{"label": "ca,t", "probability": 0.75}, {"label": "dog", "probability": 0.25}]
        rows = [{"path": path, "labels": labels, "error": None} for path in told["paths"]]
        seen.extend("there" for path in told["paths"] if Path(path).is_file())
        rows.append({"path": "bad.jpg", "labels": [], "error": "not a picture"})
        rows = [{"known": 0.5 if row["labels"] else None, "unknown": False, **row} for row in rows]
        return {"predictions": rows, "asked": None}

    monkeypatch.setattr(inference_commands, "_answer", answer)
    monkeypatch.setattr(inference_commands, "_place", lambda *_: {})
    return seen


def test_a_picture_on_stdin_is_predicted_and_gone(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"\xff\xd8\xff\xe0rest"))
    assert main(["predict", "-", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [(row["path"], row["rank"], row["label"], row["probability"]) for row in rows] == [
        ("-", "1", "ca,t", "0.75"),
        ("-", "2", "dog", "0.25"),
        ("bad.jpg", "", "", ""),
    ]
    assert rows[2]["error"] == "not a picture"
    assert [row["known"] for row in rows] == ["0.5", "0.5", ""]
    assert asked[1] == "there" and not Path(asked[0]).exists()


def test_paths_on_stdin_stand_among_the_others(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"b.jpg\nc.jpg\n"))
    assert main(["predict", "a.jpg", "-", "d.jpg"]) == 0
    assert asked == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


@pytest.mark.parametrize("command", [["predict", "a.jpg"], ["evaluate"]])
def test_two_forms_of_one_answer_are_refused(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--csv", "--json"]) == 2
    assert "--csv" in capfd.readouterr().out


def test_accuracies_are_a_row_for_each_class() -> None:
    values = {"per_class": {"a": {"count": 3, "accuracy": 0.5}}}
    assert csv_text.accuracies(values) == "class,pictures,accuracy\na,3,0.5"


def test_the_environment_stands_in_for_options(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """EDGELADDER_BUDGET, and what is typed goes before it."""
    seen: list[object] = []

    def take(place: object) -> None:
        seen.append((place.budget_bytes, str(place.cache), place.device))
        raise ConfigError("enough")

    monkeypatch.setattr(train_commands, "_found", take)
    monkeypatch.setenv("EDGELADDER_BUDGET", "192MB")
    monkeypatch.setenv("EDGELADDER_CACHE", "/var/cache/taps")
    monkeypatch.setenv("EDGELADDER_DEVICE", "raspberry-pi-5")
    assert main(["plan"]) == 2
    assert main(["plan", "--budget", "1GB", "--cache", "here"]) == 2
    assert seen == [
        (192_000_000, "/var/cache/taps", "raspberry-pi-5"),
        (1_000_000_000, "here", "raspberry-pi-5"),
    ]
    monkeypatch.setenv("EDGELADDER_BUDGET", "4")
    assert main(["plan"]) == 2
    assert "write 4GB" in capfd.readouterr().err
