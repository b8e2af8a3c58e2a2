"""A camera as a source, with a video file in its place: real frames through the real command."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from edgeladder.cli import app as application
from edgeladder.serve.camera import frames, is_live
from edgeladder.serve.camera_process import Camera, named
from tests.serve.conftest import Running
from tests.serve.test_watch import rows, until

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds at ten frames a second, each second of another colour."""
    path = tmp_path_factory.mktemp("video") / "belt.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(40):
            pixels = random.integers(0, 60, (120, 160, 3), dtype=np.uint8)
            pixels[..., number // 10 % 3] += 150
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_by_the_clock_of_the_file(video):
    taken = [frame.time for frame in frames(str(video), 0.5)]
    assert taken == pytest.approx([0.5 * n for n in range(8)], abs=0.11)
    assert len(list(frames(str(video), 0.05))) == 40
    assert not is_live(str(video))
    assert is_live("rtsp://camera/1")
    assert is_live("/dev/video0")


def test_a_video_is_labelled_to_its_end(nano_run, video, tmp_path):
    out, folder, sorted_ = tmp_path / "a.csv", tmp_path / "frames", tmp_path / "sorted"
    watch = Running(
        "watch", str(folder), "--source", str(video), "--every", "0.5", "--out", str(out),
        "--run", str(nano_run), "--budget", "500MB", "--settle", "0", "--json",
    )  # fmt: skip
    assert watch.process.wait(120) == 0, watch.lines
    told = json.loads(watch.process.stdout.read())
    watch.stop()
    assert told["pictures"] == 8
    assert len(rows(out)) == 8
    assert all(row["path"].startswith("camera-") and not row["error"] for row in rows(out))
    assert not list(folder.iterdir())  # nobody else has the frames, and nobody asked for them
    assert told["memory"]["phases"]["serve"]["measured_peak_bytes"] < 500e6
    assert not sorted_.exists()


def test_a_camera_that_dies_is_started_again_and_one_that_is_none_is_said(
    nano_run, video, tmp_path, capfd, monkeypatch
):
    said: list[str] = []
    monkeypatch.setattr("edgeladder.serve.camera_process._AGAIN_SECONDS", 0.05)
    folder = tmp_path / "frames"
    folder.mkdir()
    source = "rtsp://me:secret@127.0.0.1:9/stream?key=secret"  # nobody listens there
    with Camera(source, folder, 1.0, said.append) as camera:
        until(lambda: any("tried again" in line for line in said))
        camera._process.send_signal(signal.SIGKILL)

        def again() -> bool:
            camera.look()
            return sum("tried again" in line for line in said) == 2

        until(again)
    assert "secret" not in " ".join(said)
    assert named(source) == "rtsp://127.0.0.1:9/stream"
    words = ["watch", str(folder), "--run", str(nano_run), "--out", str(tmp_path / "b.csv")]
    words += ["--budget", "500MB", "--json", "--source"]
    assert application.main([*words, str(tmp_path / "no.mp4")]) == 2
    assert "no such camera" in json.loads(capfd.readouterr().out)["error"]["message"]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 100)
    assert application.main([*words, str(broken)]) == 4
    assert "no video" in json.loads(capfd.readouterr().out)["error"]["message"]
