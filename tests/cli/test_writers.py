"""Every command that writes: what it did not make stays, and the error names the option."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from edgeladder.cli import app as application
from edgeladder.core.bundle import Bundle
from tests.runtime.infer.conftest import an_adapter, save_adapter


@pytest.fixture
def run_folder(tmp_path: Path, bundle_folder: Path) -> Path:
    """A finished run, as far as the writers look."""
    run = tmp_path / "run"
    run.mkdir()
    save_adapter(run, an_adapter(Bundle.open(bundle_folder)))
    request = {"bundle": str(bundle_folder), "data": "data", "seed": 0}
    (run / "config.yaml").write_text(yaml.safe_dump({"request": request}))
    (run / "metrics.jsonl").write_text("")
    return run


@pytest.fixture
def dear(tmp_path: Path) -> Path:
    """A folder and a file in it that are somebody's."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("my measurements")
    (folder / "model.onnx").write_bytes(b"\x08\x08\x12\x07pytorch:\x00")
    return folder


def refused(arguments: list[object], option: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert application.main([*map(str, arguments), "--json"]) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["message"].startswith(f"{option} names what EdgeLadder did not make"), error


def kept(folder: Path) -> bool:
    left = {path.name for path in folder.iterdir()}
    return left == {"metrics.jsonl", "model.onnx"} and (
        (folder / "metrics.jsonl").read_text() == "my measurements"
        and (folder / "model.onnx").read_bytes()[4:11] == b"pytorch"
    )


def test_deploy(run_folder, dear, capfd):
    refused(["deploy", "--run", run_folder, "--out", dear / "model.onnx"], "--out", capfd)
    refused(["deploy", "--run", run_folder, "--out", dear], "--out", capfd)
    assert kept(dear)
    own = dear.parent / "own.onnx"
    for _ in range(2):  # its own file is replaced
        assert application.main(["deploy", "--run", str(run_folder), "--out", str(own)]) == 0


def test_report(run_folder, dear, capfd):
    refused(["report", "--run", run_folder, "--out", dear / "metrics.jsonl"], "--out", capfd)
    assert kept(dear)
    for _ in range(2):
        assert application.main(["report", "--run", str(run_folder)]) == 0


def test_train_demo_and_condense(run_folder, dear, bundle_folder, picture_folder, capfd):
    train = ["train", "--bundle", bundle_folder, "--data", picture_folder, "--budget", "1GB"]
    refused([*train, "--run", dear], "--run", capfd)
    refused(["condense", "--run", run_folder, "--out", dear], "--out", capfd)
    refused(["demo", "--out", dear], "--out", capfd)
    assert kept(dear)


def test_precompute(dear, bundle_folder, picture_folder, capfd):
    command = ["precompute", "--bundle", bundle_folder, "--data", picture_folder]
    refused([*command, "--budget", "16GB", "--cache", dear / "model.onnx"], "--cache", capfd)
    assert kept(dear)


def test_export(dear, capfd):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("a device has no export")
    refused(["export", "--model", "nano", "--out", dear], "--out", capfd)
    refused(["export", "--model", "nano", "--out", f"{dear}.tar"], "--out", capfd)
    assert kept(dear)


def test_fleet_pull_and_report(dear, bundle_folder, capfd, tmp_path):
    pytest.importorskip("asyncssh")
    inventory = tmp_path / "fleet.yaml"
    hosts = {"box": {"address": "127.0.0.1", "port": 9}}
    inventory.write_text(yaml.safe_dump({"hosts": hosts}))
    command = ["fleet", "pull", "--inventory", inventory, "--bundle", bundle_folder]
    refused([*command, "--job", "thesis", "--out", tmp_path], "--out", capfd)
    assert kept(dear)
    (tmp_path / "out" / "t" / "hosts").mkdir(parents=True)
    (tmp_path / "out" / "t" / "failures.json").write_text('{"box": "away"}')
    command = ["fleet", "report", "--job", "t", "--out", tmp_path / "out"]
    refused([*command, "--page", dear / "metrics.jsonl"], "--page", capfd)
    assert kept(dear)
