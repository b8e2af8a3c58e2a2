"""The first page of the guides, walked: each command it shows for a device, as it stands."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from edgeladder.core.shipped import DEMO_PICTURES
from tests.conftest import own_program
from tests.tools.test_shown_commands import typed

ROOT = Path(__file__).parents[2]  # the guides stand beside the tests, not beside the package
_ELSEWHERE = ("doctor", "demo", "models", "export")  # have tests of their own; two are a host's


def few_pictures(folder: Path) -> None:
    """Three of the ten garments, eight training pictures and two test pictures of each."""
    with zipfile.ZipFile(DEMO_PICTURES) as archive:
        for split, most in (("train", 8), ("test", 2)):
            for name in ("dress", "hat", "shoes"):
                inside = [n for n in archive.namelist() if n.startswith(f"{split}/{name}/")]
                for member in sorted(n for n in inside if not n.endswith("/"))[:most]:
                    archive.extract(member, folder)


def test_the_first_page_can_be_walked(tmp_path):
    few_pictures(tmp_path / "data")
    environment = own_program(tmp_path / "bin")
    lines = [x for x in typed(ROOT / "docs/start.md") if x.split()[1] not in _ELSEWHERE]
    assert len(lines) > 10
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if line.startswith("edgeladder train"):
            assert "next: edgeladder predict --run runs/" in done.stdout
    assert (tmp_path / "model.onnx").is_file() and (tmp_path / "report.html").is_file()
    assert (tmp_path / "runs/second/comparison.json").is_file()
