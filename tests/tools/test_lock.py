"""The list of pinned dependencies: whole, hashed, without a registry, as the project asks."""

from __future__ import annotations

import re

import pytest

from tools.check_lock import CAMERA, LOCK, ROOT, dependencies, problems

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TEXT = LOCK.read_text(encoding="utf-8")


def test_the_list_is_what_the_project_asks_for() -> None:
    assert problems(TEXT, PROJECT) == []
    names = {requirement.name for requirement in dependencies(PROJECT)}
    assert {"numpy", "onnxruntime", "pydantic", "cryptography", "starlette", "uvicorn"} <= names
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", TEXT)


def test_the_cameras_list_is_what_the_extra_asks_for() -> None:
    assert problems(CAMERA.read_text(encoding="utf-8"), PROJECT, CAMERA) == []
    assert [requirement.name for requirement in dependencies(PROJECT, CAMERA)] == ["av"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: re.sub(r"(?m)^numpy==\S+", "numpy==1.20.0", text), "pyproject.toml asks for"),
        (lambda text: re.sub(r"(?m)^psutil==\S+", "psutil>=7", text), "not pinned"),
        (lambda text: text.replace("sha256:", "md5:", 1), "no SHA-256 hash"),
        (lambda text: "--index-url https://registry.example/simple\n" + text, "names a registry"),
        (lambda text: text + "evil @ https://registry.example/evil.whl\n", "names a registry"),
        (
            lambda text: re.sub(r"(?m)^numpy==2\.5[^-]*(?:\s+--hash=\S+(?: \\)?\n)+", "", text),
            "3.13",
        ),
    ],
)
def test_what_does_not_hold_is_said(change, words: str) -> None:
    changed = change(TEXT)
    assert changed != TEXT
    assert any(words in line for line in problems(changed, PROJECT))
