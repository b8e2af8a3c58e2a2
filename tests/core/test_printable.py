"""What steers a terminal or a page is escaped; what people write in any language stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeladder.cli.output import Answer, Output, table
from edgeladder.core.errors import DataError
from edgeladder.core.files import write_json
from edgeladder.core.printable import json_text, one_line, printable

HOSTILE = "\x1b[2J\x9b31m\u202egpj.exe\u2066\udcff\x7f\r"


def test_languages_stay_and_steering_goes() -> None:
    for text in ("naïve café", "Ωmega 東京 🐈‍⬛", "می‌خواهم", "a\tb\nc", "non\u00a0breaking"):
        assert printable(text) == text
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    shown = printable(HOSTILE)
    assert shown == "\\u001b[2J\\u009b31m\\u202egpj.exe\\u2066\\udcff\\u007f\\r"
    shown.encode("utf-8")


def test_json_loses_nothing_and_steers_nothing(tmp_path: Path) -> None:
    for indent in (None, 2):
        text = json_text({"a": HOSTILE, "b": "\U000e0041"}, indent=indent)
        assert json.loads(text) == {"a": HOSTILE, "b": "\U000e0041"}
        assert printable(text) == text
    write_json(tmp_path / "a.json", [HOSTILE])
    assert json.loads((tmp_path / "a.json").read_text()) == [HOSTILE]


@pytest.mark.parametrize("as_json", [True, False])
def test_answers_and_errors_steer_nothing(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    with Output(as_json) as output:
        output.answer(Answer({"path": HOSTILE}, table(["path"], [[HOSTILE]])))
    with Output(as_json) as output:
        output.failure(DataError(HOSTILE, where=HOSTILE, remedy=HOSTILE))
    captured = capfd.readouterr()
    both = captured.out + captured.err
    assert printable(both) == both and "gpj.exe" in both
