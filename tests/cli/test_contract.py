"""Nothing that a person can type or a file can hold ends in exit code 1 (contract of the CLI)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeladder.cli import app as application
from edgeladder.core import errors
from edgeladder.core.archive import pack
from edgeladder.core.bundle import Bundle
from edgeladder.core.files import real_path
from edgeladder.core.inference import Form
from edgeladder.core.ownership import foreign_part
from edgeladder.jobs import machine_baseline
from edgeladder.runtime.deployment import check_form
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.run_folder import run_bundle, run_request

Cli = Callable[..., tuple[int, dict[str, Any]]]
NINES = "9" * 400


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command with --json: its exit code and its one JSON object."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        code = application.main([*map(str, arguments), "--json"])
        return code, json.loads(capfd.readouterr().out)

    return run


@pytest.fixture
def place(bundle_folder: Path, picture_folder: Path, tmp_path: Path) -> dict[str, str]:
    """Options of a training that would do."""
    return {
        "--bundle": str(bundle_folder),
        "--data": str(picture_folder),
        "--cache": str(tmp_path / "cache"),
        "--run": str(tmp_path / "run"),
    }


def words(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


@pytest.mark.parametrize(
    "more",
    [
        ["--budget", NINES],
        ["--budget", f"{NINES}.5GB"],
        ["--engine", "zz"],
        ["--set", "train.batch=[1"],
        ["--set", "train.batch=9999-99-99"],
        ["--set", "train.batch=" + "[" * 3000 + "]" * 3000],
        ["--set", "train.batch=" + "9" * 5000],
        ["--set", "train.epochs=" + NINES],
        ["--set", "train.batch=\x00"],
        ["--set", "a\udcffb=1"],
        ["--profile", "x" * 5000 + ".yaml"],
        ["--profile", "a\0b.yaml"],
        ["--device", "x" * 5000 + ".yaml"],
        ["--bundle", "/".join(["y" * 200] * 30)],
        ["--bundle", "a\0b"],
        ["--bundle", "a\udcffb"],
        ["--data", "x" * 300],
    ],
)
def test_what_can_be_typed_is_usage(place: dict[str, str], cli: Cli, more: list[str]) -> None:
    options = {key: value for key, value in place.items() if key != "--run"}
    code, answer = cli("plan", *words(options), *more)
    assert code == errors.ConfigError.exit_code, answer
    assert answer["error"]["remedy"]


def test_more_views_than_anyone_can_want_are_refused_at_once(
    place: dict[str, str], cli: Cli, tmp_path: Path
) -> None:
    options = {key: value for key, value in place.items() if key != "--run"}
    for count in ("99999", "65", "-1"):
        code, answer = cli("precompute", *words(options), "--views", count)
        assert code == errors.ConfigError.exit_code and "--views" in str(answer), answer
    assert not (tmp_path / "cache").exists()
    code, answer = cli("plan", *words(options), "--set", "train.views=4")
    assert code == 0 and answer["views"] == 4


@pytest.mark.parametrize("option", ["--run", "--cache"])
@pytest.mark.parametrize("below", [True, False])
def test_a_folder_that_is_or_lies_under_a_file(
    place: dict[str, str], cli: Cli, tmp_path: Path, option: str, below: bool
) -> None:
    file = tmp_path / "file"
    file.write_text("words")
    code, answer = cli("train", *words({**place, option: str(file / "x" if below else file)}))
    assert code == errors.ConfigError.exit_code, answer
    assert file.read_text() == "words"


@pytest.mark.parametrize("command", ["precompute", "export --model nano"])
def test_an_unknown_dtype_is_usage(
    place: dict[str, str], cli: Cli, tmp_path: Path, command: str
) -> None:
    more = (
        ["--out", str(tmp_path / "b")]
        if "export" in command
        else words({key: value for key, value in place.items() if key != "--run"})
    )
    code, answer = cli(*command.split(), *more, "--dtype", "fp8")
    assert code == errors.ConfigError.exit_code, answer


def test_a_folder_name_of_other_bytes_is_bad_data(
    place: dict[str, str], cli: Cli, tmp_path: Path
) -> None:
    folder = os.fsencode(place["--data"])
    os.rename(folder + b"/class0", folder + b"/cl\xff")
    code, answer = cli("train", *words(place))
    assert code == errors.DataError.exit_code, answer
    assert "not UTF-8" in answer["error"]["message"]
    assert answer["error"]["message"].count("cl\\udcff") == 1  # escaped, so that it can be shown


DEEP = b"[" * 3000
YAML = {
    "deep": DEEP,
    "closed": DEEP + b"]" * 3000,
    "blocks": b"".join(b" " * n + b"a:\n" for n in range(3000)),
    "date": b"name: 9999-99-99\n",
    "bytes": b"\xff\xfe",
    "nul": b"a: \x00",
    "number": b"a: " + b"9" * 5000,
    "circle": b"a: &a [*a]\n",
    "key": b"? [a]\n: 1\n",
    "no number": b'a: !!int ""\n',
    "no float": b'a: !!float ""\n',
    "no truth": b"a: !!bool x\n",
    "no time": b"a: !!timestamp x\n",
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_of_any_kind_is_refused_as_what_it_is(
    picture_folder: Path, cli: Cli, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "written.yaml"
    file.write_bytes(YAML[name])
    assert cli("profiles", "validate", file)[0] == errors.ConfigError.exit_code
    assert cli("devices", "validate", file)[0] == errors.ConfigError.exit_code
    (picture_folder / "classes.yaml").write_bytes(YAML[name])
    with pytest.raises(errors.DataError):
        open_data(picture_folder)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("csv", b"path,label\na\0b.png,c\n"),
        ("csv", b"path,label\na.png,c\0d\n"),
        ("csv", b"path,label\n" + b"x" * 200_000 + b",c\n"),
        ("jsonl", b'{"path":"a\\u0000b","label":"c"}\n'),
        ("jsonl", b'{"path":"\\ud800","label":"c"}\n'),
        ("jsonl", b"[" * 100_000),
        ("zip", b"PK\x05\x06"),
    ],
)
def test_lists_of_any_bytes_are_bad_data(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"list.{suffix}"
    file.write_bytes(content)
    with pytest.raises(errors.DataError):
        open_data(file)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"a":' * 5000, b"null", b"\xff", b"{}"])
def test_manifests_of_any_bytes_are_an_integrity_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(errors.IntegrityError):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_cut_archive_is_an_integrity_error(
    bundle_folder: Path, tmp_path: Path, share: float
) -> None:
    archive = tmp_path / "cut.tar"
    pack(bundle_folder, archive)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * (len(content) - 10_240))])
    with pytest.raises(errors.IntegrityError):
        Bundle.open(archive)


def test_run_records_of_any_kind(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("result.json", "plan.json", "metrics.jsonl", "config.yaml"):
        for content in (b"[" * 100_000, b'{"memory":5,"phases":[1],"kind":"phase"}', b"\xff"):
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
            (run / "config.yaml").write_text("engine: stock\n")
            (run / name).write_bytes(content)
            assert cli("report", "--run", run)[0] in (0, 2, 4, 5), (name, content[:20])


def test_no_space_and_no_leave_have_a_code_of_their_own(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    def examine(bundle: object) -> None:
        (tmp_path / "there").write_text("")
        raise PermissionError(13, "Permission denied", str(tmp_path / "there"))

    monkeypatch.setattr("edgeladder.doctor.examine", examine)
    code, answer = cli("doctor")
    assert (code, answer["error"]["type"]) == (7, "StorageError")
    assert answer["error"]["where"] == str(tmp_path / "there")


def test_a_run_whose_numbers_are_none_is_listed_as_damaged(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    (run / "adapter.json").write_text("{}")
    (run / "result.json").write_text(
        '{"accuracy":{"tuned":1,"zero_shot":1,"count":1e999,"split":"test"},'
        '"counts":{"classes":1,"train":1},"memory":{"phases":{},"budget_bytes":1}}'
    )
    code, answer = cli("runs", "--folder", tmp_path / "runs")
    assert code == 0 and answer["runs"][0]["state"] == "damaged"


def test_a_home_that_nobody_has_is_usage(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, answer = cli("--trust-key", "~nobody-of-this-name/key.pub", "runs")
    assert code == errors.ConfigError.exit_code, answer
    monkeypatch.setenv("EDGELADDER_TRUSTED_KEYS", "~nobody-of-this-name/key.pub")
    assert cli("bundle", "verify", "--bundle", "nano")[0] == errors.ConfigError.exit_code


@pytest.mark.parametrize("bundle", ["5", "[1]", "{a: 1}", "1.5", "true"])
def test_a_run_that_names_no_bundle(tmp_path: Path, bundle: str) -> None:
    (tmp_path / "config.yaml").write_text(f"request: {{bundle: {bundle}}}\n")
    with pytest.raises(errors.IntegrityError, match="bundle is no text"):
        run_bundle(tmp_path)
    (tmp_path / "config.yaml").write_text("request: {}\n")
    with pytest.raises(errors.ConfigError, match="names no bundle"):
        run_bundle(tmp_path)


@pytest.mark.parametrize("told", ["shots: x", "seed: [1]", "data: 5", "cache: {}", "seed: true"])
def test_a_run_whose_request_is_of_another_kind(tmp_path: Path, told: str) -> None:
    (tmp_path / "config.yaml").write_text(f"request: {{{told}}}\n")
    with pytest.raises(errors.IntegrityError, match=f"{told.split(':')[0]} is no"):
        run_request(tmp_path)


def test_a_file_that_is_not_utf8_is_not_deployed_to(tmp_path: Path) -> None:
    for out in (tmp_path / "a\udcffb", tmp_path / "a\udcffb/model.onnx"):
        with pytest.raises(errors.ConfigError, match="UTF-8"):
            check_form(out, Form())


@pytest.mark.parametrize("told", ["[1]", "5", '{"supervisor_bytes": "x"}', '{"x": 1}', "null"])
def test_a_remembered_baseline_of_any_kind_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setattr(machine_baseline, "_key", lambda: "here")
    (tmp_path / "baseline.json").write_text(f'{{"here": {told}}}')
    assert machine_baseline.remembered_baseline(tmp_path) is None
    (tmp_path / "baseline.json").write_text("[" * 100_000)
    assert machine_baseline.remembered_baseline(tmp_path) is None


def test_what_was_nested_too_deeply_to_be_read_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    assert foreign_part(tmp_path, "bundle") == "the folder is not empty and holds no bundle"
    assert foreign_part(tmp_path, "pulled") is not None


def test_paths_of_old_records_are_compared_whatever_they_are(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert real_path(tmp_path / "loop").name == "loop"
    assert real_path("a\0b") == Path("a\0b")
    assert real_path("a\ud800") == Path("a\ud800")
