"""Imports run one way, checked in fresh processes: the device wing loads no torch and no onnx."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgeladder

PACKAGE = Path(edgeladder.__file__).parent
HEAVY = ("torch", "onnx", "onnxscript", "open_clip", "timm", "scipy", "edgeladder.host")


def modules_of(*wings: str) -> list[str]:
    found = []
    for wing in wings:
        path = PACKAGE / wing
        if path.is_dir():
            walk = pkgutil.walk_packages([str(path)], f"edgeladder.{wing}.")
            found += [item.name for item in walk if not item.name.endswith("__main__")]
    return found


def loaded_by(names: list[str]) -> set[str]:
    """What is in sys.modules of a fresh process after it imported `names`."""
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)],
        capture_output=True, text=True, check=False, cwd=PACKAGE.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def heavy() -> set[str]:
    """What must not be loaded. The training build of onnxruntime loads torch and onnx of its own
    accord where they are installed: there they say nothing about us; elsewhere they do."""
    return set(HEAVY) - loaded_by(["onnxruntime"])


@pytest.mark.parametrize("wing", ["core", "runtime", "budget", "jobs", "report", "cli", "serve"])
def test_a_wing_loads_nothing_of_the_host(wing, heavy):
    if wing == "serve":
        pytest.importorskip("uvicorn")
        pytest.importorskip("av")
    names = [name for name in modules_of(wing) if name != "edgeladder.cli.fleet_commands"]
    assert names
    assert not loaded_by(names) & heavy


def test_the_ground_floor_loads_nothing_of_the_host(heavy):
    names = [f"edgeladder.{n}" for n in ("doctor", "demo")]
    assert not loaded_by(names) & heavy


def test_help_loads_neither_numpy_nor_pydantic_nor_yaml():
    code = (
        "import json, sys\n"
        "from edgeladder.cli.app import main\n"
        "code = main(['--help'])\n"
        "print(json.dumps([code, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    heavy = {"numpy", "pydantic", "yaml", "onnxruntime", "PIL", "asyncssh", "rich.progress", *HEAVY}
    assert code == 0
    assert not heavy & set(loaded)


def test_the_supervisor_stays_small():
    loaded = loaded_by(["edgeladder.jobs.supervisor"])
    assert not {"numpy", "pydantic", "yaml", "onnxruntime", "PIL"} & loaded


def test_what_serves_and_waits_stays_small():
    """It counts inside the budget as long as it stays up: pictures are opened by its worker."""
    pytest.importorskip("uvicorn")
    loaded = loaded_by(["edgeladder.serve.server"])
    heavy = {"numpy", "pydantic", "yaml", "onnxruntime", "PIL", "httptools", "uvloop", "av"}
    assert not heavy & loaded


def test_nothing_outside_the_host_imports_it_at_module_level():
    offenders = []
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "host" in path.parents:
            continue
        for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            if any(name.split(".")[0] in HEAVY or "edgeladder.host" in name for name in names):
                offenders.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert offenders == []


def module_level(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported; those under TYPE_CHECKING do not."""
    found, queue = [], list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            queue.extend(
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            )
    return found
