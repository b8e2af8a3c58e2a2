"""The real `edgeladder train` on real sshd boxes: two rounds end to end, on the tiny bundle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from edgeladder import __version__
from edgeladder.core.bundle import Bundle


def test_two_boxes_two_rounds_and_an_evaluation(
    make_farm: Any, bundle_folder: Path, program: Path, tmp_path: Path, fleet_cli: Any
) -> None:
    from tests.conftest import make_pictures

    farm = make_farm("a", "b", budget="2GB")
    for box, count in zip(farm.boxes.values(), (4, 8), strict=True):
        make_pictures(box.root / "data", classes=3, count=count)
    values = yaml.safe_load(farm.inventory.read_text())
    values["defaults"]["program"] = str(program)
    farm.inventory.write_text(yaml.safe_dump(values, sort_keys=False))
    code, answer = fleet_cli("doctor", "-i", farm.inventory)
    assert answer["hosts"]["a"]["installed"] == {"edgeladder": __version__}  # by its own word
    out = tmp_path / "out"
    common = ("-i", farm.inventory, "--bundle", bundle_folder, "--out", out, "--poll", "0.3")
    asked = ("--set", "train.epochs=1", "--set", "head.kind=gda", "--set", "head.weight=2")
    code, answer = fleet_cli("rounds", "2", "--name", "fed", *common, *asked)
    assert code == 0, (
        {n: h.get("error") for n, h in answer["hosts"].items()},
        *(p.read_text()[-800:] for p in farm.folder.rglob("jobs/*/log")),
    )
    weights = {name: host["weight"] for name, host in answer["hosts"].items()}
    assert weights == pytest.approx({"a": 0.5, "b": 0.5})  # of two, neither outweighs
    bundle = Bundle.open(bundle_folder)
    for number in (1, 2):
        round_folder = out / f"fed-r{number}"
        parts = {n: load_file(round_folder / "hosts" / n / "adapter.safetensors") for n in "ab"}
        average = load_file(round_folder / "average" / "adapter.safetensors")
        assert set(average) >= {record.name for record in bundle.manifest.ladder.parameters}
        for name, value in average.items():
            expected = weights["a"] * parts["a"][name].astype(np.float64)
            expected = expected + weights["b"] * parts["b"][name].astype(np.float64)
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
        result = json.loads((round_folder / "hosts" / "a" / "result.json").read_text())
        assert result["memory"]["budget_bytes"] == 2_000_000_000
    metadata = json.loads((round_folder / "hosts" / "a" / "adapter.json").read_text())
    assert metadata["head"] is None  # rounds train without, whatever the profile has
    started = yaml.safe_load((out / "fed-r2" / "hosts" / "a" / "config.yaml").read_text())
    assert "/trees/adapter/" in started["request"]["start"]
    average = out / "fed-r2" / "average"
    code, answer = fleet_cli("evaluate", *common, "--adapter", average)
    assert code == 0, answer
    assert answer["count"] >= 2
    assert os.path.isdir(farm.boxes["a"].root / "cache")
