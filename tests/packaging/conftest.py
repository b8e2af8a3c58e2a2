"""Fresh environments to install the wheel of this tree into."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

Install = Callable[..., Path]


@pytest.fixture(scope="session")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Install the wheel into a new environment; gives the environment's folder."""

    def make(extra: str = "") -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
        target = f"{wheel}[{extra}]" if extra else str(wheel)
        subprocess.run([*pip, "install", "--quiet", target], check=True)
        return folder

    return make
