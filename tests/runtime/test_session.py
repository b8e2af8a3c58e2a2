"""One place opens sessions, and every one of them multiplies int8 weights in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import edgeladder
from edgeladder.core.bundle import Bundle
from edgeladder.core.manifest import SegmentRecord, TensorRecord
from edgeladder.core.onnx_graph import one_node_model
from edgeladder.core.protobuf import FLOAT
from edgeladder.runtime import exact_sums, session
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes

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


def _image_segments() -> list[SegmentRecord]:
    return Bundle.open(PACKAGE / "_nano" / "bundle").manifest.image.segments


def test_what_convolves() -> None:
    maps, picture = (
        TensorRecord(name="h", shape=[16, 7, 7]),
        TensorRecord(name="p", shape=[3, 8, 8]),
    )
    tokens = TensorRecord(name="t", shape=[5, 16])

    def made(inputs: TensorRecord, outputs: TensorRecord, stored: int | None) -> SegmentRecord:
        return SegmentRecord(
            file="f", inputs=[inputs], outputs=[outputs], weight_bytes=100, activation_bytes=1,
            float_bytes=stored,
        )  # fmt: skip

    assert all(segment.convolves for segment in _image_segments())
    assert not made(picture, tokens, None).convolves  # a transformer's patches
    assert made(picture, tokens, None).opened_bytes == 100
    assert made(picture, maps, None).opened_bytes == 400  # before it was recorded: int8
    assert made(maps, tokens, 100).opened_bytes == 100
    assert made(tokens, tokens, 400).opened_bytes == 100


def test_int8_convolutions_are_widened_once_to_the_same_numbers() -> None:
    block = _image_segments()[5]
    path = PACKAGE / "_nano" / "bundle" / block.file
    given = np.random.default_rng(0).normal(size=(2, *block.inputs[0].shape)).astype(np.float32)
    found = {}
    for widen in (False, True):
        made = session.open_segment(path, 1, widen=widen)
        (found[widen], *_) = made.run(None, {block.inputs[0].name: given})
        if widen:
            options = made.get_session_options()
            assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    assert np.abs(found[True] - found[False]).max() < 1e-5 * np.abs(found[False]).max()


def test_a_tower_opens_its_convolutions_widened(monkeypatch, tmp_path: Path) -> None:
    asked = []
    opened = session.open_segment

    def watched(path: Path, threads: int, **options: object) -> onnxruntime.InferenceSession:
        asked.append(options["widen"])
        return opened(path, threads, **options)

    monkeypatch.setattr(session, "open_segment", watched)
    bundle = Bundle.open(PACKAGE / "_nano" / "bundle")
    size = bundle.manifest.preprocess.size
    runner = TowerRunner(bundle, "image", TowerSizes(threads=1, whole=True), tmp_path)
    runner.run(ArraySamples(np.zeros((1, 3, size, size), np.float32)), lambda start, outputs: None)
    runner.close()
    assert asked == [True] * len(bundle.manifest.image.segments)


def test_sums_of_int8_products_are_exact_on_every_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x86 without VNNI would saturate 16 bits; with it the setting costs twice the time."""
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(exact_sums, "_CPUINFO", cpuinfo)
    for machine, flags, expected in (
        ("x86_64", "fpu avx2 avx512f", True),
        ("x86_64", "fpu avx2 avx512_vnni", False),
        ("x86_64", "fpu avx_vnni", False),
        ("x86_64", None, True),  # what is not known is not trusted
        ("aarch64", "fp asimd", False),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        if flags is None:
            cpuinfo.unlink()
        else:
            cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\nprocessor : 1\nflags : vnni\n")
        exact_sums.exact_sums.cache_clear()
        assert ("session.x64quantprecision" in exact_sums.exact_sums()) == expected
    exact_sums.exact_sums.cache_clear()


def test_doctor_says_how_int8_is_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(exact_sums, "_CPUINFO", cpuinfo)
    for machine, line, expected in (
        ("x86_64", "flags : avx512_vnni", "VNNI"),
        ("x86_64", "flags : avx2", "no VNNI: exact, by slower sums"),
        ("aarch64", "Features : fp asimd asimddp i8mm", "i8mm"),
        ("aarch64", "Features : fp asimd asimddp", "dot product"),
        ("aarch64", "Features : fp asimd", "NEON, without dot"),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        cpuinfo.write_text(line + "\n")
        exact_sums.exact_sums.cache_clear()
        assert exact_sums.describe() == expected
    exact_sums.exact_sums.cache_clear()
