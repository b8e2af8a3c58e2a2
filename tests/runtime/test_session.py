"""One place opens sessions, and every one of them multiplies int8 weights in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

import edgeladder
from edgeladder.core.onnx_graph import one_node_model
from edgeladder.core.protobuf import FLOAT
from edgeladder.runtime import session

PACKAGE = Path(edgeladder.__file__).parent


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("InferenceSession(", ["runtime/session.py"]),
        ("SessionOptions()", ["runtime/session.py"]),
        ("CPUExecutionProvider", ["runtime/session.py"]),
        ("ExecutionProvider", ["core/provider.py", "runtime/session.py"]),  # others' names: a table
    ],
)
def test_sessions_are_opened_in_one_file(text: str, files: list[str]) -> None:
    found = [path for path in PACKAGE.rglob("*.py") if text in path.read_text(encoding="utf-8")]
    assert sorted(path.relative_to(PACKAGE).as_posix() for path in found) == files


@pytest.mark.parametrize(
    "opened",
    [
        lambda path: session.open_session(path, 1),
        lambda path: session.open_session(path, 1, as_written=True, arena=False),
        lambda path: session.open_segment(path, 1),
        lambda path: session.open_segment(path, 1, spin=True, arena="own"),
        lambda path: session.open_segment(path, 1, arena="shared"),
        lambda path: session.open_plain(path, 1),
        lambda path: session.open_plain(path.read_bytes()),
    ],
)
def test_each_session_has_the_setting_and_no_plan(
    opened: Callable[[Path], onnxruntime.InferenceSession], tmp_path: Path
) -> None:
    path = tmp_path / "identity.onnx"
    path.write_bytes(one_node_model("Identity", FLOAT, FLOAT))
    made = opened(path)
    options = made.get_session_options()
    for key, value in session.IN_FLOAT.items():
        assert options.get_session_config_entry(key) == value
    assert not options.enable_mem_pattern
    assert made.get_providers() == [session.CPU_PROVIDER]
