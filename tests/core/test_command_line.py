"""Requests as the commands that a person would type."""

from __future__ import annotations

import shlex

from edgeladder.core.command_line import resume_command, train_command
from edgeladder.core.request import TrainRequest
from edgeladder.core.shipped import NANO_BUNDLE


def test_a_run_is_gone_on_with_by_its_name():
    assert resume_command("runs/my run") == "edgeladder train --resume 'runs/my run'"


def test_a_training_is_repeated_with_all_that_was_not_a_default():
    request = TrainRequest(
        bundle=str(NANO_BUNDLE), data="my pictures", budget_bytes=160_000_000, seed=3, shots=4,
        overrides=["train.epochs=2", "head.kind=none"], run="runs/first",
    )  # fmt: skip
    assert shlex.split(train_command(request)) == [
        "edgeladder", "train", "--bundle", "nano", "--data", "my pictures",
        "--budget", "160MB", "--set", "train.epochs=2", "--set", "head.kind=none",
        "--shots", "4", "--seed", "3",
    ]  # fmt: skip


def test_a_condensing_is_repeated_from_its_source():
    request = TrainRequest(
        condense="runs/first", overrides=["ladder.prompts.keep=0.3"], budget_bytes=1_000_000_000
    )
    assert train_command(request) == (
        "edgeladder condense --run runs/first --budget 1GB --set ladder.prompts.keep=0.3"
    )
