"""doctor: what it says of machines and bundles, healthy and not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeladder import doctor
from edgeladder.cli.app import main
from edgeladder.core.errors import ConfigError


def line(examination: doctor.Examination, name: str) -> doctor.Check:
    return next(check for check in examination.checks if check.name == name)


def test_a_healthy_machine(capfd):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["healthy"]
    assert found["machine"]["cores"] >= 1
    assert "stock" in found["machine"]["engines"]
    assert {check["name"] for check in found["checks"]} >= {"python", "engines", "limit", "disk"}


def test_clashing_packages_fail_with_the_repair(monkeypatch, capfd):
    def clash() -> None:
        raise ConfigError("two packages", remedy="pip uninstall -y both")

    monkeypatch.setattr("edgeladder.runtime.engine.environment.check_environment", clash)
    assert main(["doctor"]) == 2
    text = capfd.readouterr().out
    assert "FAILED   engines: two packages" in text
    assert "fix: pip uninstall -y both" in text


def test_a_missing_package_names_the_pip_command(monkeypatch):
    monkeypatch.setattr(doctor, "_NEEDED_PACKAGES", ("numpy", "no-such-package"))
    check = line(doctor.examine(), "packages")
    assert (check.status, check.exit_code) == ("failed", 2)
    assert check.remedy == "pip install no-such-package"


def test_little_memory_and_disk_are_warnings(monkeypatch):
    monkeypatch.setattr(doctor, "_LEAST_DISK_BYTES", 1 << 62)
    monkeypatch.setattr(doctor, "LEAST_USEFUL_BYTES", 1 << 62)
    found = doctor.examine()
    assert line(found, "disk").status == line(found, "memory").status == "warning"
    assert found.exit_code == 0


def test_a_bundle_is_verified_and_its_golden_steps_replayed(bundle_folder):
    found = doctor.examine(bundle_folder)
    assert line(found, "bundle").status == "ok"
    assert line(found, "golden steps").status == "ok", line(found, "golden steps")
    assert found.golden and found.golden["stock"]["ok"]


def test_other_golden_steps_are_exit_5(bundle_folder, monkeypatch):
    wrong = {"ok": False, "loss_error": 0.5, "state_error": 0.25}
    monkeypatch.setattr("edgeladder.runtime.engine.golden.replay", lambda *_, **__: wrong)
    found = doctor.examine(bundle_folder)
    assert found.exit_code == 5
    assert "stock" in line(found, "golden steps").detail


def test_a_changed_byte_is_exit_5_and_names_the_file(bundle_copy: Path, capfd):
    victim = next((bundle_copy / "backbone").rglob("*.onnx"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert main(["doctor", "--bundle", str(bundle_copy), "--json"]) == 5
    check = json.loads(capfd.readouterr().out)["checks"][-1]
    assert (check["name"], check["status"]) == ("bundle", "failed")
    assert victim.name in check["detail"]
    assert check["remedy"]


def test_no_bundle_is_exit_2(tmp_path):
    assert main(["doctor", "--bundle", str(tmp_path)]) == 2


@pytest.mark.parametrize("layer", ["rlimit", "none"])
def test_a_weak_limit_is_a_warning_that_says_how_to_get_a_better_one(monkeypatch, layer):
    from edgeladder.budget import limits

    monkeypatch.setattr(
        limits, "open_limit", lambda *_: limits.MemoryLimit(layer, notes=["cgroup2: not mounted"])
    )
    check = line(doctor.examine(), "limit")
    assert check.status == "warning"
    assert "cgroup2: not mounted" in check.detail
    assert "cgroup_enable=memory" in str(check.remedy)


GB = 2**30


@pytest.mark.parametrize(
    ("model", "architecture", "ram_bytes", "name"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0", "aarch64", 0.45 * GB, "raspberry-pi-zero-2w"),
        ("Raspberry Pi 4 Model B Rev 1.4", "aarch64", 3.8 * GB, "raspberry-pi-4"),
        ("Raspberry Pi 4 Model B Rev 1.5", "aarch64", 7.8 * GB, "raspberry-pi-4-8gb"),
        ("Raspberry Pi 5 Model B Rev 1.0", "aarch64", 15.8 * GB, "raspberry-pi-5-16gb"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "aarch64", 7.4 * GB, "jetson-orin-nano"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "aarch64", 61 * GB, "jetson-agx-orin"),
        ("NVIDIA Jetson Nano Developer Kit", "aarch64", 3.9 * GB, "jetson-nano"),
        ("NVIDIA Jetson Orin NX Engineering Reference", "aarch64", 15.3 * GB, "jetson-orin-nx"),
        ("Some Board", "aarch64", 2.0 * GB, "generic-2gb"),
        ("Intel(R) Core(TM) i5", "x86_64", 15.9 * GB, "x86-laptop"),
        ("Intel(R) Celeron", "x86_64", 4.0 * GB, "generic-x86"),
        ("Some Board", "riscv64", 4 * GB, None),
    ],
)
def test_the_device_profile_that_fits(model, architecture, ram_bytes, name):
    assert doctor.suggest_device(model, architecture, int(ram_bytes)) == name


@pytest.mark.parametrize(
    ("device", "status", "words"),
    [
        ("jetson-orin", "warning", "is idle"),
        ("x86-laptop", "ok", "onnxruntime-openvino may be faster"),
        ("raspberry-pi-5", "ok", "the CPU alone"),
    ],
)
def test_an_idle_gpu_is_told_with_the_wheel_that_would_use_it(monkeypatch, device, status, words):
    monkeypatch.setattr("edgeladder.core.provider.offered", lambda *_: [])
    machine = doctor.Machine("", "", 1, 1, 1, 0, "", "", device=device)
    check = doctor._accelerator(machine)
    assert check.status == status and words in check.detail
    if status == "warning":
        assert "JetPack" in str(check.remedy)
