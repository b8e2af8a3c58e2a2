"""Check requirements/*.txt against pyproject.toml, offline: what `tools/lint lock` runs.

Every requirement is pinned to one version with SHA-256 hashes, names no registry and no URL, and
every dependency of a device install is there at a version that pyproject.toml allows, whatever the
Python. Whoever audits dependencies reads this list.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "device.txt"
CAMERA = ROOT / "requirements" / "camera.txt"  # FFmpeg, for those who want it
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
_MACHINES = ("x86_64", "aarch64")


def dependencies(project: str, lock: Path = LOCK) -> list[Requirement]:
    """Requirements of a list of pins: the base install and its extras, or the camera's alone.

    By hand, because Python 3.10 has no TOML reader.
    """
    text = "" if lock == CAMERA else project.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    for extra in ("camera",) if lock == CAMERA else ("sign", "serve"):
        more = re.search(rf"^{extra} = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
        text += more[1] if more else ""
    return [Requirement(words) for words in re.findall(r'"([^"]+)"', text)]


def problems(lock: str, project: str, name: Path = LOCK) -> list[str]:
    """Everything that is wrong with a lock file's text, in words."""
    found = []
    pinned: dict[str, list[Requirement]] = {}
    for entry in lock.replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        words, *hashes = entry.split("--hash=")
        if words.lstrip().startswith("-") or re.search(r"://|\s@\s", entry):
            found.append(f"names a registry or an address: {entry[:80]}")
            continue
        requirement = Requirement(words.strip())
        if not re.fullmatch(r"==[^*,]+", str(requirement.specifier)):
            found.append(f"{requirement.name} is not pinned to one version")
        if not hashes or len(_HASH.findall(entry)) != len(hashes):
            found.append(f"{requirement.name} has no SHA-256 hash, or another kind")
        pinned.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for wanted in dependencies(project, name):
        lines = pinned.get(canonicalize_name(wanted.name), [])
        found += [
            f"{line} is not what pyproject.toml asks for: {wanted}"
            for line in lines
            if not wanted.specifier.contains(str(line.specifier).removeprefix("=="))
        ]
        found += [f"{wanted.name} is missing for {place}" for place in _places_without(lines)]
    return found


def _places_without(lines: list[Requirement]) -> list[str]:
    """Pythons and machines for which none of a package's lines holds."""
    places = []
    for python in _PYTHONS:
        for machine in _MACHINES:
            environment = {
                "python_version": python,
                "python_full_version": f"{python}.1",
                "platform_machine": machine,
                "sys_platform": "linux",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
            }
            if not any(line.marker is None or line.marker.evaluate(environment) for line in lines):
                places.append(f"Python {python} on {machine}")
    return places


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = []
    for lock in (LOCK, CAMERA):
        wrong = problems(lock.read_text(encoding="utf-8"), project, lock)
        found += [f"requirements/{lock.name}: {line}" for line in wrong]
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("tools/lock writes it anew", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
