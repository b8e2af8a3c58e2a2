"""The list of operators, and the page that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeladder.core.operators import ALLOWED, is_allowed


def test_the_page_has_the_whole_list() -> None:
    page = Path(__file__).parents[2] / "docs" / "bundle.md"
    if not page.is_file():
        pytest.skip("installed without its sources")
    words = page.read_text(encoding="utf-8").split("## Operators")[1]
    for domain, operators in ALLOWED.items():
        listed = words.split(f"`{domain}`: ")[1].split(".\n")[0].replace("\n", " ").rstrip(".")
        assert listed.split(", ") == sorted(operators)


def test_domains() -> None:
    assert is_allowed("", "MatMul") and is_allowed("ai.onnx", "MatMul")
    assert is_allowed("com.microsoft", "FusedMatMul") and not is_allowed("", "FusedMatMul")
    assert not is_allowed("com.example", "MatMul")
