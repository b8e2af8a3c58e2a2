"""Progress off a terminal: a plain line now and then, always on stderr."""

from __future__ import annotations

from edgeladder.cli import progress as module


def test_lines_are_few_and_the_last_is_always_there(capfd, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with module.Progress() as progress:
        for step in range(1, 101):
            clock[0] += 0.25  # 25 s in all, a line each 10 s
            progress("train", step, 100)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train 1/100",
        "train 41/100",
        "train 81/100",
        "train 100/100",
    ]


def test_each_phase_is_announced(capfd):
    with module.Progress() as progress:
        progress("plan")
        progress("train", 0, None, "")
        progress("train", 5, 5, "loss 0.2500")
    assert capfd.readouterr().err.splitlines() == ["plan", "train", "train 5/5 loss 0.2500"]


def test_what_is_waited_for_is_always_said(capfd):
    with module.Progress() as progress:
        progress("precompute", 0, None, "")
        progress("precompute", 0, 0, "waiting up to 10 s for the lock of the cache x")
    assert capfd.readouterr().err.splitlines()[1] == (
        "precompute waiting up to 10 s for the lock of the cache x"
    )


def test_a_bar_is_drawn_on_a_terminal_and_taken_down(capfd, monkeypatch):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    with module.Progress() as progress:
        progress("plan")
        progress("train", 1, 2)
        progress("train", 2, 2, "loss 0.1")
    captured = capfd.readouterr()
    assert captured.out == ""
    last = captured.err.rsplit("\x1b[2K", 1)[-1]  # the frame drawn over all others
    assert "train" in last and "2/2" in last
    assert "plan" not in last, "a phase that never counted leaves no bar"
