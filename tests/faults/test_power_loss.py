"""Nothing is half there, whatever operation of the disk goes wrong: a sample of `tools.faults`."""

from __future__ import annotations

import ast
import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgeladder
from edgeladder.core import disk, made_here
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, StorageError
from edgeladder.core.files import building, write_json
from edgeladder.fleet.push import adapter_tree
from edgeladder.jobs.run_directory import read_metrics
from edgeladder.runtime.adapter import WEIGHTS, adapter_of, load_adapter, save_adapter
from edgeladder.runtime.engine.protocol import StepInputs, StepResult
from edgeladder.runtime.engine.stock import StockEngine
from tools.faults import commands
from tools.faults.commands import Command
from tools.faults.disk import FaultyDisk, How, PowerCut
from tools.faults.prove import Prover, every, sample


def all_well(command: Command, work: Path, count: int | None, seed: int = 0) -> None:
    prover = Prover(command, work)
    cuts = every(prover.operations) if count is None else sample(prover.operations, count, seed)
    proof = prover.prove(cuts)
    assert proof.cuts and not proof.failures, "\n".join(proof.failures)


def test_a_file_is_as_before_or_complete(tmp_path: Path) -> None:
    def act(place: Path) -> None:
        write_json(place / "new" / "folder" / "a.json", {"value": 1})
        write_json(place / "b.json", {"value": 1})

    def before(place: Path) -> None:
        write_json(place / "b.json", {"value": 0})

    def state(place: Path) -> object:
        return json.loads((place / "b.json").read_text())

    all_well(Command.whole("files", before, act, state), tmp_path, None)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_as_before_or_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:  # a file system that cannot: the old folder is put back by who comes next
        monkeypatch.setattr(disk.Disk, "exchange", lambda self, one, other: False)

    def make(place: Path, value: int) -> None:
        with building(place / "pulled", "pulled") as temporary:
            (temporary / "a.txt").write_text(str(value) * 100)
            write_json(temporary / "pull.json", {"files": {"a.txt": value}})

    def state(place: Path) -> object:
        files = json.loads((place / "pulled" / "pull.json").read_text())["files"]
        return [files, (place / "pulled" / "a.txt").read_text()]

    command = Command.whole("folder", lambda p: make(p, 0), lambda p: make(p, 1), state)
    if exchanges:
        all_well(command, tmp_path, None)
        return
    prover = Prover(command, tmp_path)
    shutil.rmtree(prover.place / "pulled")
    prover.allowed.append(prover._state())
    failures = prover.prove(every(prover.operations)).failures
    # between its two renames the name is nobody's for a moment; nothing is lost by it
    assert all("neither as before" in failure for failure in failures)
    assert len({failure.split(",")[0] for failure in failures}) <= 3


def test_a_pull_is_as_before_or_complete(tmp_path: Path) -> None:
    all_well(commands.pull_job(), tmp_path, None)


def test_an_export_and_an_archive_are_as_before_or_complete(
    tmp_path: Path, bundle_folder: Path
) -> None:
    all_well(commands.export(bundle_folder), tmp_path, 3)
    all_well(commands.archive(bundle_folder), tmp_path, 2)


def test_a_training_ends_with_the_same_bits(
    tmp_path: Path, bundle_folder: Path, picture_folder: Path
) -> None:
    all_well(commands.train(bundle_folder, picture_folder), tmp_path, 8)


@pytest.mark.parametrize("pinned", [False, True])
def test_an_adapters_two_files_are_of_one_generation(
    tmp_path: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    """And the mark that this machine made it, where keys are pinned, is of the same."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    if pinned:
        monkeypatch.setattr(made_here, "pinned_keys", lambda: [None])
        made_here.device_secret(make=True)
    bundle = Bundle.open(bundle_folder, verify=False)

    def save(place: Path, value: float) -> None:
        weights = {"up": np.full(9, value, np.float32)}
        made = adapter_of(
            bundle, weights, classes=[str(value)], class_names=[str(value)], templates=[]
        )
        save_adapter(place, replace(made, record=replace(made.record, created="today")))

    def state(place: Path) -> object:
        found = load_adapter(place, bundle)
        return [found.parameters["up"].tolist(), found.record.classes]

    command = Command.whole("adapter", lambda p: save(p, 1), lambda p: save(p, 2), state)
    all_well(command, tmp_path, None)


def test_weights_that_wait_are_pushed_under_their_name(tmp_path: Path, bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder, verify=False)
    made = adapter_of(bundle, {"up": np.ones(3)}, classes=["a"], class_names=["a"], templates=[])
    save_adapter(tmp_path, made)
    right = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / ".adapter.safetensors.next").write_bytes(right)
    (tmp_path / WEIGHTS).write_bytes(b"of the generation before")
    assert load_adapter(tmp_path, bundle).parameters["up"].tolist() == [1, 1, 1]
    tree = adapter_tree(tmp_path)
    assert tree.sources[tree.files[WEIGHTS]][0].read_bytes() == right
    save_adapter(tmp_path, made)
    assert (tmp_path / WEIGHTS).read_bytes() == right, "and the next to write tidies up"
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_diverges_keeps_its_last_good_adapter(
    tmp_path: Path, bundle_folder: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real engine: three times back at half the rate, then exit code 2."""
    parts = commands.train(bundle_folder, picture_folder).parts(tmp_path)
    steps, true_step = itertools.count(1), StockEngine.step
    rates = []

    def step(engine: StockEngine, inputs: StepInputs, rate: float) -> StepResult:
        result = true_step(engine, inputs, rate)
        if next(steps) <= 3:
            return result
        rates.append(rate)
        nothing = {name: array * np.nan for name, array in engine.parameters().items()}
        engine.set_parameters(nothing)
        return replace(result, loss=float("inf"))

    monkeypatch.setattr(StockEngine, "step", step)
    parts[0]()
    parts[1]()
    with pytest.raises(ConfigError, match="diverged 4 times") as caught:
        parts[2]()
    assert caught.value.exit_code == 2 and "learning_rate" in str(caught.value.remedy)
    run = tmp_path / "run"
    told = [record for record in read_metrics(run / "metrics.jsonl")]
    assert [r["rate_scale"] for r in told if r["kind"] == "rollback"] == [0.5, 0.25, 0.125]
    assert len(rates) == 4
    kept = load_adapter(run, Bundle.open(bundle_folder, verify=False)).parameters
    assert kept and all(np.isfinite(array).all() for array in kept.values())
    monkeypatch.undo()
    commands.train(bundle_folder, picture_folder).act(tmp_path)  # it goes on from there


def test_what_was_not_fsynced_may_be_gone(tmp_path: Path) -> None:
    """The model itself: it forgets what is not certain and keeps what is."""
    (tmp_path / "certain").write_text("certain")
    faulty = FaultyDisk(tmp_path, at=3)

    def act() -> None:
        with disk.create(tmp_path / "loose") as stream:
            stream.write(b"loose")
        (tmp_path / "certain").write_text("changed")
        disk.make_folders(tmp_path / "kept")  # with an fsync of the folder above
        disk.unlink(tmp_path / "certain")

    with disk.using(faulty), pytest.raises(PowerCut):
        act()
    faulty.leave(1.0, random.Random(0))
    assert (tmp_path / "certain").read_text() == "certain"
    assert (tmp_path / "kept").is_dir() and (tmp_path / "loose").read_text() != "loose"


def test_a_broken_disk_is_a_storage_error(tmp_path: Path) -> None:
    said: dict[How, str] = {"full": "no space left", "broken": "reports an error"}
    for how, words in said.items():
        faulty = FaultyDisk(tmp_path, 0, how)
        with disk.using(faulty), pytest.raises(StorageError, match=words):
            write_json(tmp_path / "a.json", {})
        faulty.close()
        assert not list(tmp_path.iterdir())


# what may write by itself, and why
ELSEWHERE = {
    "core/disk.py": "it is the place",
    "budget/limits.py": "files of cgroups",
    "budget/cgroup_files.py": "files of cgroups",
    "cli/from_stdin.py": "a copy that is gone with its command",
    "serve/application.py": "a picture on its way, gone with its answer",
    "serve/camera.py": "a frame on its way; a lost one is the next one's turn",
    "serve/journal.py": "one file that only grows, with fsyncs and a repair that tests/serve kills",
    "serve/placing.py": "moves after the journal's word, made up for at the next start",
    "serve/watch.py": "the folder that is watched, and frames that are written down",
    "core/passing_folder.py": "folders that are gone with their processes",
    "jobs/child.py": "pipes, and the log that no result depends on",
    "jobs/control.py": "pipes",
    "cli/output.py": "the terminal",
    "runtime/towers/spill.py": "a file without a name, gone with its process",
    "runtime/deploy_check.py": "a candidate, fsynced before it takes its name",
    "host/": "below `building`, which fsyncs the whole tree",
    "fleet/box/": "the agent: one file for any Python, with its own fsyncs",
}
_CALLS = {"replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "makedirs", "rmtree",
          "write_bytes", "write_text", "ftruncate"}  # fmt: skip


def test_everything_is_written_through_the_disk() -> None:
    root = Path(edgeladder.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(name.startswith(place) for place in ELSEWHERE):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _writes(node):
                found.append(f"{name}:{node.lineno}")
    assert not found, found


def _writes(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        modes = [a.value for a in call.args[1:2] if isinstance(a, ast.Constant)]
        return function.id == "open" and any(set(str(mode)) & set("wax+") for mode in modes)
    if not isinstance(function, ast.Attribute) or function.attr not in _CALLS:
        return False
    of = function.value.id if isinstance(function.value, ast.Name) else ""
    if function.attr in ("replace", "rename"):
        return of == "os"  # of others: text, dataclasses and graphs
    return of not in ("disk", "files")
