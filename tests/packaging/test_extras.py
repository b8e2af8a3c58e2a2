"""Real installs with pip: no way of asking for the wheel ends in a broken environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


def doctor(environment: Path) -> dict[str, Any]:
    done = subprocess.run(
        [environment / "bin" / "edgeladder", "doctor", "--json"],
        capture_output=True, text=True, check=False, cwd=environment,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["healthy"] else 2), done.stderr
    return found


def pip(environment: Path, *arguments: str) -> None:
    command = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*command, *arguments], check=True)


def test_ort_training_is_one_command_and_a_clash_is_found_and_mended(install):
    environment = install("ort-training")
    pip(environment, "check")
    assert doctor(environment)["machine"]["engines"] == ["stock", "ort-training"]

    # what another installer, or a later upgrade, does: the stock build ends up on top
    pip(environment, "install", "--force-reinstall", "--no-deps", "onnxruntime==1.19.2")
    found = doctor(environment)
    failed = next(check for check in found["checks"] if check["status"] == "failed")
    assert failed["name"] == "engines"

    for command in failed["remedy"].split(" && "):
        assert command.startswith("pip ")
        pip(environment, *command.split()[1:])
    assert doctor(environment)["machine"]["engines"] == ["stock", "ort-training"]
    pip(environment, "check")
