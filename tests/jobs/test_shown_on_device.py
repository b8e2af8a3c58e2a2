"""Every command that a page shows for a device is run, as it stands, in one folder after the other.

`docs/start.md` has its own walk (`test_walk.py`). What needs a host's packages, other machines or a
process that stays is run elsewhere: `ELSEWHERE` says in which test.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from edgeladder.core.shipped import DEMO_PICTURES, NANO_BUNDLE
from tests.conftest import own_program
from tests.jobs.test_walk import few_pictures
from tests.tools.test_shown_commands import PAGES, ROOT, placeholder, typed

ELSEWHERE = {  # beginning of the line: the test that runs it
    "export": "tests/host/test_shown_on_host.py",
    "models": "tests/host/test_shown_on_host.py",
    "fleet": "tests/fleet/test_shown_to_fleet.py",
    "serve": "tests/serve/test_shown_services.py",
    "watch": "tests/serve/test_shown_services.py",
    "demo": "tests/jobs/test_demo.py",
    "bundle": "tests/host/test_shown_on_host.py",  # the extra [sign]
    "adapter": "tests/host/test_shown_on_host.py",
}
_REFUSED = {"predict picture.jpg --provider openvino": 2}  # not installed here, and so it says


def _plain(line: str) -> str:
    """A line without its comment and its program."""
    return " ".join(re.sub(r"\s#.*", "", line).split()).removeprefix("edgeladder ")


def shown(page: Path) -> list[str]:
    """The lines of a page that are this test's."""
    return [
        line
        for line in typed(page)
        if not placeholder(line) and _plain(line).split(" ")[0] not in ELSEWHERE
    ]


WALKED = [page for page in PAGES if page.name != "start.md" and shown(page)]


def _pictures(archive: zipfile.ZipFile, start: str) -> list[str]:
    names = archive.namelist()
    return [name for name in names if name.startswith(start) and not name.endswith("/")]


class Place:
    """A folder with what the pages take for granted, and `edgeladder` in its PATH."""

    def __init__(self, folder: Path, bundle: Path):
        self.folder = folder
        self.environment = {
            **own_program(folder / "bin"),
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "user-cache"),
        }
        self.done: set[str] = set()
        for name in ("data", "pictures", "more-pictures", "PICTURES"):
            few_pictures(folder / name)
        for name in ("dress", "hat"):
            shutil.copytree(folder / "data" / "train" / name, folder / "new" / name)
        some = sorted((folder / "data" / "test").rglob("*.*g"))
        (folder / "data" / "unlabelled").mkdir()
        (folder / "folder").mkdir()
        with zipfile.ZipFile(DEMO_PICTURES) as archive:
            for number in range(3):
                member = archive.read(sorted(_pictures(archive, "train/pants/"))[number])
                (folder / "data" / "unlabelled" / f"{number}.jpg").write_bytes(member)
        with zipfile.ZipFile(folder / "camera.zip", "w") as archive:
            archive.write(folder / "data" / "unlabelled" / "0.jpg", "0.jpg")
        shutil.copy(some[0], folder / "folder")
        shutil.copy(some[-1], folder / "picture.jpg")
        dress, *_ = sorted((folder / "data/train/dress").iterdir())
        shutil.copy(dress, folder / "data/train/shoes")  # a wrong label, for `check`
        shutil.copytree(bundle, folder / "vit-bundle")
        shutil.copytree(NANO_BUNDLE, folder / "bundle")
        (folder / "farm.yaml").write_text("hat: sun hat\nboat: a rowing boat\n")
        # what a user may have, too: the pages' trainings need not be long here
        (folder / "edgeladder.yaml").write_text("train: {set: [train.steps=6]}\n")
        completions = ".local/share/bash-completion/completions"
        (folder / completions).mkdir(parents=True)

    def run(self, line: str, code: int = 0) -> str:
        """One line in a shell; what it said."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ready(self) -> None:
        """Two runs that there were before, under all the names that pages give them."""
        for name, more in (("first", "--bundle nano"), ("second", "--profile gda")):
            self.run(f"edgeladder train {more} --budget 200MB --shots 2 --run runs/{name}")
        named = ("spring", "clothing", "20260228-093000", "20260301-120000", "monday", "tuesday")
        for name in named:
            shutil.copytree(self.folder / "runs/first", self.folder / "runs" / name)
        self.run("edgeladder profiles show default > my-recipe.yaml; cp my-recipe.yaml ours.yaml")


def decide(file: Path) -> None:
    """Fill in the first line of a file of decisions: that picture is a hat."""
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["decision"] = "hat"
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bundle_folder: Path) -> Place:
    made = Place(tmp_path_factory.mktemp("shown"), bundle_folder)
    made.ready()
    return made


def _before(place: Place, line: str) -> None:
    """What a person does between the lines."""
    if "--fix" in _plain(line):
        decide(place.folder / _plain(line).partition("--fix ")[2].split()[0])
    if "train" in _plain(line) and "--run " in line:  # a run's name is taken only once
        shutil.rmtree(place.folder / line.partition("--run ")[2].split()[0], ignore_errors=True)
    if "--take" in line and not (place.folder / "to-label").is_dir():
        place.run("edgeladder suggest 2 --out to-label")


@pytest.mark.parametrize("page", WALKED, ids=[str(page.relative_to(ROOT)) for page in WALKED])
def test_what_a_page_shows_works(place: Place, page: Path) -> None:
    for line in shown(page):
        plain = _plain(line)
        if plain in place.done:
            continue
        place.done.add(plain)
        _before(place, line)
        place.run(line, _REFUSED.get(plain, 0))


def test_what_is_run_elsewhere_is() -> None:
    for test in set(ELSEWHERE.values()):
        assert (ROOT / test).is_file(), test
