"""The commands that pages show for a host run as they stand: export, models, signatures.

Real models' weights come from a network: their exports are run with a small model and untrained
weights in their place, all else as the page shows it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeladder.cli.app import main
from edgeladder.core.bundle import Bundle
from edgeladder.runtime.adapter import save_adapter
from tests.conftest import make_pictures
from tests.make_bundle import register_model
from tests.runtime.infer.conftest import an_adapter
from tests.tools.test_shown_commands import PAGES, ROOT, placeholder, typed, words

_REAL = {"ViT-B/16"}  # models whose weights are not here
_ELSEWHERE = {"nano": "tests/host/test_nano.py", "nano-vit": "tests/host/test_nano_vit.py"}


def shown(*commands: str) -> list[list[str]]:
    """Words of the lines of these commands on any page, each once; `bundle` is the default."""
    found: dict[tuple[str, ...], None] = {}
    for page in PAGES:
        for line in typed(page):
            given = [] if placeholder(line) else words(line)
            if given[:1] and given[0] in commands and not _ELSEWHERE.keys() & set(given):
                found[tuple(given[:-2] if given[-2:] == ["--out", "bundle"] else given)] = None
    return [list(given) for given in found]


EXPORTS = shown("export")
SIGNED = shown("bundle", "adapter")


@pytest.mark.parametrize("given", EXPORTS, ids=[" ".join(given) for given in EXPORTS])
def test_an_export(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(tmp_path / "pictures", count=4)
    monkeypatch.chdir(tmp_path)
    small = [register_model() if word in _REAL else word for word in given]
    if small != given:
        small += ["--pretrained", "none"]
    assert main(small) == 0
    tower = Bundle.open(tmp_path / "bundle").manifest.image
    assert (tower.int8 is not None) == (given[given.index("--dtype") + 1] == "int8")


def test_the_lists_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    for given in shown("models"):
        assert main(given) == 0
        assert "ViT" in capsys.readouterr().out


def test_the_signatures(bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_copy.rename(tmp_path / "bundle")
    for name in ("first", "spring"):
        save_adapter(tmp_path / "runs" / name, an_adapter(Bundle.open(tmp_path / "bundle")))
    monkeypatch.chdir(tmp_path)
    assert len(SIGNED) > 4
    for given in SIGNED:
        if "keygen" in given:  # on each page anew
            for path in tmp_path.glob("publisher.key*"):
                path.unlink()
        assert main(given) == 0, given


def test_what_is_run_elsewhere_is() -> None:
    for test in _ELSEWHERE.values():
        assert (ROOT / test).is_file()
