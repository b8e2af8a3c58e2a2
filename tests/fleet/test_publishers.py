"""A fleet that pins publishers: what they did not sign is neither pushed nor run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeladder.core import signature, trusted_keys
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.fleet.box.commands import command_of
from edgeladder.fleet.box.records import TrainOptions, TrainTask
from edgeladder.fleet.box.store import Refused
from edgeladder.fleet.inventory import Inventory


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(trusted_keys.VARIABLE, "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trusted_keys, "SYSTEM_FILE", tmp_path / "system_keys")


def test_push_carries_signatures_and_refuses_others(
    make_farm: Any, bundle: Bundle, fleet_cli: Any, tmp_path: Path
) -> None:
    publisher, ours = tmp_path / "publisher", tmp_path / "ours"
    for key in (publisher, ours):
        signature.make_key(key)
    farm = make_farm("a", "b")
    keys = farm.inventory.with_name("trusted_keys")
    keys.write_text(publisher.with_name("publisher.pub").read_text())
    with open(farm.inventory, "a") as stream:
        stream.write("\ntrusted_keys: trusted_keys\n")
    common = ("--inventory", farm.inventory)
    of_bundle = ("--bundle", bundle.folder)

    code, answer = fleet_cli("push", *common, *of_bundle)
    assert code == 5 and "is not signed" in answer["error"]["message"]
    signature.sign(bundle.folder, "bundle", ours)
    assert fleet_cli("push", *common, *of_bundle)[0] == 5
    signature.sign(bundle.folder, "bundle", publisher)
    assert fleet_cli("push", *common, *of_bundle)[0] == 0
    there = farm.boxes["a"].root / "bundle"
    assert Bundle.open(there, trusted=trusted_keys.read_keys(keys)).digest == bundle.digest

    # signed anew: carried again, under a name of its own
    before = there.resolve()
    (bundle.folder / "manifest.json.sig").unlink()
    keys.write_text(keys.read_text() + ours.with_name("ours.pub").read_text())
    signature.sign(bundle.folder, "bundle", ours)
    assert fleet_cli("push", *common, *of_bundle)[0] == 0
    assert there.resolve() != before
    assert signature.verify(there, "bundle") == trusted_keys.read_keys(keys)[1]

    # rounds: boxes would refuse an average that nobody signed
    rounds = ("rounds", "2", *common, *of_bundle, "--name", "r", "--out", tmp_path / "out")
    code, answer = fleet_cli(*rounds, "--poll", "0.1")
    assert code == 2 and "signing_key" in answer["error"]["remedy"]
    with open(farm.inventory, "a") as stream:
        stream.write(f"signing_key: {ours}\n")
    code, answer = fleet_cli(*rounds, "--poll", "0.1")
    assert code == 0, answer
    average = tmp_path / "out" / "r-r2" / "average"
    signature.require_trusted(average, "adapter")
    command = json.loads((farm.boxes["a"].root / "jobs/r-r2/job.json").read_text())["command"]
    assert command[1] == "--trust-key" and command[2].startswith("ssh-ed25519 ")
    pushed = Path(command[command.index("--start") + 1].format(root=farm.boxes["a"].root))
    assert (pushed / "adapter.json.sig").is_file()

    evaluate = ("evaluate", *common, *of_bundle, "--out", tmp_path / "out", "--poll", "0.1")
    assert fleet_cli(*evaluate, "--adapter", average)[0] == 0
    (average / "adapter.json.sig").unlink()
    assert fleet_cli(*evaluate, "--adapter", average)[0] == 5


@pytest.mark.parametrize("key", ["/etc/passwd", "ssh-ed25519 AAAA", "x --json", ""])
def test_a_box_takes_keys_and_no_files(key: str) -> None:
    task = TrainTask(
        "{root}/venv/bin/edgeladder", "~/pictures", TrainOptions("0" * 64), trusted_keys=(key,)
    )
    with pytest.raises(Refused, match="trusted key"):
        command_of(task, "/box")


def test_an_inventory_whose_keys_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("hosts: {a: 10.0.0.1}\ntrusted_keys: absent\n")
    with pytest.raises(ConfigError, match="cannot read trusted keys"):
        Inventory.open(path)
