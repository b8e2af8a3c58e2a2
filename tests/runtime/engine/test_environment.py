"""Two packages, one `onnxruntime` module: which mixtures are whole, and how to mend the rest."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from edgeladder.core.errors import ConfigError
from edgeladder.runtime.engine import environment

STOCK, TRAINING = "onnxruntime", "onnxruntime-training-cpu"
BINARY = "onnxruntime/capi/onnxruntime_pybind11_state.so"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty site folder, the only one that distributions are looked up in."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in list(sys.modules):
        if name == "onnxruntime" or name.startswith("onnxruntime."):
            monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return tmp_path


def install(site: Path, name: str, binary: bytes) -> None:
    """What pip does: write the module's files, and a record of them."""
    files = {"onnxruntime/__init__.py": b"", BINARY: binary}
    lines = []
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        lines.append(f"{path},,{len(content)}")
    info = site / f"{name.replace('-', '_')}-1.19.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.19.2\n")
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")


def test_nothing_installed(site):
    with pytest.raises(ConfigError, match="not installed") as caught:
        environment.check_environment()
    assert caught.value.remedy == "pip install onnxruntime"
    assert environment.installed_engines() == []


@pytest.mark.parametrize(
    ("name", "engines"), [(STOCK, ["stock"]), (TRAINING, ["stock", "ort-training"])]
)
def test_one_package_is_fine(site, name, engines):
    install(site, name, b"binary")
    environment.check_environment()
    assert environment.installed_engines() == engines


def test_training_on_top_of_stock_is_whole(site):
    install(site, STOCK, b"stock")
    install(site, TRAINING, b"with training")
    environment.check_environment()
    assert environment.installed_engines() == ["stock", "ort-training"]


def test_stock_on_top_of_training_is_found_with_the_repair(site):
    install(site, TRAINING, b"with training")
    install(site, STOCK, b"stock")
    with pytest.raises(ConfigError, match="overwrite each other") as caught:
        environment.check_environment()
    assert caught.value.exit_code == 2
    assert caught.value.remedy == (
        "pip uninstall -y onnxruntime onnxruntime-training-cpu && "
        "pip install onnxruntime==1.19.2 && "
        "pip install --no-deps onnxruntime-training-cpu==1.19.2"
    )


def test_uninstalling_one_of_two_is_found(site):
    install(site, STOCK, b"stock")
    install(site, TRAINING, b"with training")
    (site / BINARY).unlink()
    with pytest.raises(ConfigError, match="overwrite each other"):
        environment.check_environment()


def test_two_stock_builds_are_found(site):
    install(site, STOCK, b"stock")
    install(site, "onnxruntime-gpu", b"gpu")
    with pytest.raises(ConfigError, match="onnxruntime and onnxruntime-gpu") as caught:
        environment.check_environment()
    assert caught.value.remedy == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && "
        "pip install --no-deps onnxruntime-gpu==1.19.2"
    )


def test_this_environment_is_whole():
    environment.check_environment()
    assert "stock" in environment.installed_engines()
