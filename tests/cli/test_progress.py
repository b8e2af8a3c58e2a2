"""Progress: one live line a phase on a terminal, plain lines off it, nothing where unwanted."""

from __future__ import annotations

import io
import re

import pytest

from edgeladder.cli import verbosity
from edgeladder.cli.progress import Progress as Ours
from edgeladder.core import progress as module
from edgeladder.core.progress import QUIET, VERBOSE, Progress, duration

MB = 1_000_000


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def frames(self) -> list[str]:
        return self.getvalue().split("\r\x1b[2K")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("TERM", raising=False)
    return now


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_lines_are_few_and_the_last_is_always_there(capfd, clock):
    with Ours() as progress:
        for step in range(1, 101):
            clock[0] += 0.25  # 25 s in all, a line each 10 s
            progress("train", step, 100)
        for _ in range(4):
            progress("train", 100, 100, "backbone")  # the same again is no news
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train 1/100",
        "train 41/100, 4/s, 15 s left",
        "train 81/100, 4/s, 5 s left",
        "train 100/100, 4/s",
    ]


def test_what_takes_minutes_apiece_is_no_faster_for_being_told_often(capfd, clock):
    """Eight pictures every two minutes, told each second: 0.067 a second, not 8 in the last 15."""
    with Ours() as progress:
        for second in range(361):
            progress("precompute", 8 * (second // 120), 280)
            clock[0] += 1
    assert "24/280, 0.067/s, 1:04:00 left" in capfd.readouterr().err


def test_each_phase_is_announced(capfd, clock):
    with Progress() as progress:
        progress("plan")
        progress("train", 0, None, "")
        progress("train", 5, 5, "loss 0.2500", 128 * MB, 160 * MB)
    assert capfd.readouterr().err.splitlines() == [
        "plan",
        "train",
        "train 5/5, 128 of 160 MB, loss 0.2500",
    ]


def test_what_is_waited_for_is_always_said(capfd, clock):
    with Progress() as progress:
        progress("precompute", 0, None, "")
        progress("precompute", 0, 0, "waiting up to 10 s for the lock of the cache x")
    assert capfd.readouterr().err.splitlines()[1] == (
        "precompute, waiting up to 10 s for the lock of the cache x"
    )


def test_a_live_line_tells_rate_time_and_memory_and_each_phase_leaves_one_line(clock):
    terminal = Terminal()
    with Progress(stream=terminal) as progress:
        progress("plan")
        for step in range(0, 11, 5):
            clock[0] += 1
            progress("train", step, 20, "loss 0.1", 120 * MB, 160 * MB)
        live = plain(terminal.frames[-1])
        clock[0] += 2
        progress("train", 20, 20, "", 150 * MB, 160 * MB)
        for _ in range(5):
            progress("train", 20, 20, "backbone", 90 * MB, 160 * MB)
        progress("evaluate", 3, 3)
    assert "10/20  5/s  2 s left  120 of 160 MB  loss 0.1" in live
    assert "━━━━━━━━━━━━────────────" in live
    kept = [plain(frame).strip() for frame in terminal.frames if frame.endswith("\n")]
    assert kept == ["train       20/20  in 4 s  peak 150 of 160 MB", "evaluate    3/3  in 0 s"]
    assert terminal.getvalue().count("\n") == 2, "nothing else stays"


def test_a_narrow_terminal_gets_less_and_never_a_second_line(clock, monkeypatch):
    for width in (12, 20, 40, 60, 79):
        monkeypatch.setenv("COLUMNS", str(width))
        terminal = Terminal()
        with Progress(stream=terminal) as progress:
            progress("precompute", 10, 280, "a note \x1b[31m of " + "n" * 99, 90 * MB, 160 * MB)
            frame = terminal.frames[-1]
        assert len(plain(frame)) < width, frame
        assert "\x1b[31m of" not in frame, "a note cannot steer the terminal"


@pytest.mark.parametrize(
    ("variable", "value", "colours", "live"),
    [("NO_COLOR", "1", False, True), ("NO_COLOR", "", True, True), ("TERM", "dumb", False, False)],
)
def test_colours_and_bars_can_be_refused(clock, monkeypatch, variable, value, colours, live):
    monkeypatch.setenv(variable, value)
    terminal = Terminal()
    with Progress(stream=terminal) as progress:
        progress("train", 1, 2, "", 159 * MB, 160 * MB)
    assert ("\x1b[31m" in terminal.getvalue()) is colours
    assert ("\r" in terminal.getvalue()) is live


def test_a_terminal_without_unicode_gets_a_bar_too(clock):
    terminal = Terminal()
    terminal.encoding = "ascii"
    with Progress(stream=terminal) as progress:
        progress("train", 1, 2)
    assert "############------------" in plain(terminal.getvalue())


def test_a_stopped_phase_says_so(clock):
    terminal = Terminal()
    progress = Progress(stream=terminal)
    progress("train", 7, 20)
    progress.__exit__(KeyboardInterrupt, None, None)
    assert plain(terminal.frames[-1]) == "train       7/20  stopped  in 0 s\n"


def test_quiet_says_nothing_and_verbose_tells_the_evidence(clock):
    action = {"kind": "memory", "phase": "train", "action": "trim", "used_bytes": 112 * MB}
    said = []
    for level in (QUIET, module.NORMAL, VERBOSE):
        stream = io.StringIO()
        with Progress(level, stream) as progress:
            progress("train", 1, 2)
            progress.evidence(action)
            progress.evidence({"kind": "step", "step": 1})
        said.append(stream.getvalue())
    assert said[0] == ""
    assert said[1] == "train 1/2\n"
    assert said[2] == "train 1/2\nmemory: phase train, action trim, used 112 MB\n"


def test_the_command_line_sets_the_level():
    try:
        verbosity.set_level(QUIET)
        assert Ours().level == QUIET
    finally:
        verbosity.set_level(module.NORMAL)


def test_who_reads_may_go(clock):
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Progress(stream=Closed()) as progress:
        progress("train", 1, 2)
        progress("train", 2, 2)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (185, "3:05"), (7805, "2:10:05")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
