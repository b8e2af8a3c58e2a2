"""The built wheel: what is in it, and what its extras ask for."""

from __future__ import annotations

import re
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from edgeladder import __version__
from edgeladder.core.yaml_config import library

ROOT = Path(__file__).parents[2]
BASE = {
    "numpy", "onnxruntime", "pillow", "psutil", "pydantic", "pyyaml", "rich",
    "tokenizers", "typer",
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(wheel: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def metadata(archive: zipfile.ZipFile) -> Message:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def requirements(metadata: Message, extra: str | None) -> set[str]:
    """Names required by an extra, or by the base install."""
    found = set()
    for line in metadata.get_all("Requires-Dist") or []:
        requirement, _, marker = line.partition(";")
        wanted = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
        if (wanted.group(1) if wanted else None) == extra:
            found.add(re.match(r"[\w-]+", requirement).group().lower().replace("_", "-"))
    return found


@pytest.mark.parametrize("kind", ["devices", "profiles"])
def test_the_library_ships(archive, kind):
    shipped = {n for n in archive.namelist() if n.startswith(f"edgeladder/_library/{kind}/")}
    expected = {f"edgeladder/_library/{kind}/{name}.yaml" for name in library(kind)}
    assert shipped == expected


def test_every_module_ships_and_no_test_does(archive):
    names = set(archive.namelist())
    for path in (ROOT / "edgeladder").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


def test_metadata(metadata):
    assert metadata["Name"] == "edgeladder"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_base_install_is_small(metadata):
    assert requirements(metadata, None) == BASE


def test_extras(metadata):
    assert requirements(metadata, "host") == {
        "onnx", "onnxscript", "open-clip-torch", "torch", "torchvision",
    }  # fmt: skip
    assert requirements(metadata, "ort-training") == {"onnxruntime", "onnxruntime-training-cpu"}
    assert requirements(metadata, "fleet") == {"asyncssh"}
    assert requirements(metadata, "flower") == {"flwr"}


def test_the_console_script(archive):
    name = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "edgeladder = edgeladder.cli.app:run" in archive.read(name).decode()
