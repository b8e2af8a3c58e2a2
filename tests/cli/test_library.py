"""`edgeladder devices` and `profiles`, and the YAML they ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from edgeladder.cli.app import main
from edgeladder.cli.probe import facts
from edgeladder.core.records import to_json
from edgeladder.core.yaml_config import library, load_device, load_profile

NO_FACTS = ("name", "summary", "architecture", "sources")
ROOT = Path(__file__).parents[2]


def answer(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict:
    assert main([*arguments, "--json"]) == code
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("kind", ["devices", "profiles"])
def test_list_is_the_default_and_names_everything(capfd, kind):
    listed = answer(capfd, kind, "list")[kind]
    assert [item["name"] for item in listed] == sorted(library(kind), key=lambda n: f"{n}.yaml")
    assert all(item["summary"] for item in listed)
    assert answer(capfd, kind)[kind] == listed
    assert main([kind]) == 0
    assert listed[0]["name"] in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["devices", "profiles"])
def test_all_that_ships_is_valid(capfd, kind):
    assert answer(capfd, kind, "validate")["valid"] == list(library(kind))


def test_show_gives_every_key_and_can_be_read_back(capfd, tmp_path):
    shown = answer(capfd, "profiles", "show", "default")
    assert shown["train"]["learning_rate"] == load_profile("default").train.learning_rate
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(shown))
    assert load_profile(str(path)) == load_profile("default")


def test_probe_writes_a_profile_of_this_machine(capfd, tmp_path):
    out = tmp_path / "my-box.yaml"
    told = answer(capfd, "devices", "probe", "--out", str(out))
    read = load_device(str(out))
    assert read.name == "my-box" and read.ram_bytes == told["ram_bytes"] > 10**8
    assert 0 < read.default_budget_bytes < read.ram_bytes and read.cores >= 1
    assert answer(capfd, "devices", "validate", str(out))["valid"] == [str(out)]
    again = answer(capfd, "devices", "probe", "--out", str(out), code=2)["error"]
    assert "there already" in again["message"]
    assert main(["devices", "probe"]) == 0
    assert "ram_bytes: " in capfd.readouterr().out


def test_a_board_is_known_by_its_device_tree(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    (tmp_path / "sys/class/thermal/thermal_zone0").mkdir(parents=True)
    (tmp_path / "sys/class/thermal/thermal_zone0/type").write_text("cpu-thermal\n")
    found = facts("box", root=tmp_path)
    assert found["summary"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["thermal_zones"] == ["cpu-thermal"] and found["accelerator"] is None


def test_profiles_say_which_fit_a_bundle(capfd):
    listed = answer(capfd, "profiles", "list", "--bundle", "nano")["profiles"]
    fits = {item["name"]: item["fits"] for item in listed}
    # heads alone train nothing by steps, so they fit whatever ladder there is
    assert fits["nano"] and fits["kernel"] and fits["gda"] and fits["proker"]
    # so do profiles that say nothing of the ladder
    assert fits["fast"] and fits["averaging"] and fits["views"]
    assert not fits["lst"]
    assert next(item for item in listed if item["name"] == "lst")["reason"]
    assert main(["profiles", "--bundle", "nano"]) == 0
    assert "fits" in capfd.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("name", ["kernel", "gda", "proker"])
def test_a_head_alone_is_planned_on_the_shipped_bundle(capfd, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one", "two"):
        (tmp_path / "data" / place).mkdir(parents=True)
        for number in range(2):
            picture = tmp_path / "data" / place / f"{number}.png"
            Image.new("RGB", (8, 8), (number, 0, 0)).save(picture)
    given = ["plan", "--bundle", "nano", "--profile", name, "--budget", "8GB"]  # torch may be here
    assert answer(capfd, *given)["fits"]
    # what is asked for by name is still refused
    refused = answer(capfd, *given, "--set", "ladder.width=8", code=2)["error"]
    assert "ladder.width" in refused["message"]


def test_an_unknown_name_gets_the_nearest_one(capfd):
    failure = answer(capfd, "devices", "show", "jetson-orinn", code=2)["error"]
    assert "jetson-orin" in failure["remedy"]


def test_an_unknown_key_gets_the_nearest_one_and_all_errors_come_at_once(capfd, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrain: {bach: 4, epochs: 0}\nladder: {width: 50, heads: 4}\n")
    failure = answer(capfd, "profiles", "validate", str(path), code=2)["error"]
    assert "did you mean 'batch'" in failure["message"]
    for place in ("train.bach", "train.epochs", "ladder"):
        assert place in failure["message"]
    assert failure["where"] == str(path)


@pytest.mark.parametrize("path", sorted((ROOT / "devices").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_device_states_its_sources_and_leaves_room(path):
    device = load_device(path.stem)
    assert device.name == path.stem
    facts = {k: v for k, v in to_json(device).items() if k not in NO_FACTS}
    stated = {key for key, value in facts.items() if value}
    assert stated == set(device.sources), "each fact has its source"
    assert device.default_budget_bytes <= 0.8 * device.ram_bytes
    assert f"--device {device.name}" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_profile_opens_with_its_launch_command_and_paper(path):
    profile = load_profile(path.stem)
    assert profile.name == path.stem
    first = path.read_text().splitlines()[0]
    assert first.startswith("# edgeladder ") and f"--profile {path.stem}" in first
    assert profile.paper


def test_the_boards_of_the_promise_are_there():
    assert {"jetson-orin", "raspberry-pi-zero-2w", "generic-1gb"} <= set(library("devices"))
    assert load_device("raspberry-pi-zero-2w").ram_bytes == 512 * 2**20
