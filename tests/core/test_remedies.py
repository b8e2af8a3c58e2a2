"""Remedies that can be followed: every extra they name is one of the package's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_EXTRAS = re.compile(r"edgeladder\[([a-z][a-z0-9,_ -]*)\]")


def test_every_extra_that_is_named_exists() -> None:
    project = ROOT / "pyproject.toml"
    if not project.is_file():
        pytest.skip("installed without its sources")
    table = project.read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    known = set(re.findall(r"^([a-z][a-z0-9-]*) = \[", table.split("\n[")[0], re.MULTILINE))
    assert {"host", "fleet", "ort-training"} <= known
    named: dict[str, Path] = {}
    for pattern in ("edgeladder/**/*.py", "tools/**/*.py", "docs/**/*.md", "*.md"):
        for path in ROOT.glob(pattern):
            for names in _EXTRAS.findall(path.read_text(encoding="utf-8")):
                for name in names.split(","):
                    named.setdefault(name.strip(), path.relative_to(ROOT))
    assert {name: path for name, path in named.items() if name not in known} == {}
    assert len(named) >= 4
