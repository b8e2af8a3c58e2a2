"""What is cut short: each command on a folder of its own, and what must hold there afterwards.

The phases of a training run one after the other in this process, as their workers would.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from edgeladder.core.archive import pack, unpack
from edgeladder.core.bundle import Bundle, write_manifest
from edgeladder.core.files import building, sha256_file
from edgeladder.core.inference import Form
from edgeladder.core.job import Job, PhaseOrder, PlanOrder
from edgeladder.core.plan import MachineBaseline
from edgeladder.core.request import TrainRequest
from edgeladder.fleet.box.records import FileRecord, JobState, OutputsAnswer, SendAnswer
from edgeladder.fleet.pull import pull
from edgeladder.jobs.control import Control
from edgeladder.jobs.evaluate_phase import score
from edgeladder.jobs.plan_phase import prepare
from edgeladder.jobs.precompute_phase import fill
from edgeladder.jobs.train_phase import fit
from edgeladder.runtime.deployment import deploy

_MB = 1_000_000
_BASELINE = MachineBaseline(20 * _MB, 60 * _MB, 50 * _MB, 10 * _MB, 0, 0, 0)
_STEPS = ["train.steps=6", "train.checkpoint_steps=2", "train.batch=8"]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: for the table.
        before: makes the folder as it is before the command; None: empty.
        parts: the command in pieces that run one after the other, each from what the ones before
            it left in the folder; the same again after a cut.
        state: of the folder, for comparing; raises where something is half there.
        replaces: whether it replaces what was there before: then nothing in between may be found.
            What a training leaves half done is a run that goes on, with an adapter of its own.
    """

    name: str
    before: Callable[[Path], None] | None
    parts: Callable[[Path], list[Callable[[], None]]]
    state: Callable[[Path], Any]
    replaces: bool = True

    @classmethod
    def whole(
        cls,
        name: str,
        before: Callable[[Path], None] | None,
        act: Callable[[Path], None],
        state: Callable[[Path], Any],
    ) -> Command:
        """A command in one piece."""
        return cls(name, before, lambda place: [lambda: act(place)], state)

    def act(self, place: Path) -> None:
        """All of it."""
        for part in self.parts(place):
            part()


def _request(place: Path, bundle: Path, data: Path, **changes: Any) -> TrainRequest:
    run = place / "run"
    return TrainRequest(
        bundle=str(bundle),
        data=str(data),
        cache=str(place / "cache"),
        run=str(run),
        resume=(run / "config.yaml").is_file(),
        budget_bytes=8000 * _MB,  # also what a process with torch in it holds besides
        overrides=_STEPS,
        engine="stock",
        threads=1,
        limit="none",
        baseline=_BASELINE,
        verify=False,
        **changes,
    )


def _phase(function: Any, name: str, job: Job) -> None:
    outcome, _ = function(PhaseOrder(job=job, sizes=job.plan.phases[name]), Control())
    assert outcome == "done", name


def _prepared(request: TrainRequest) -> Job:
    return prepare(PlanOrder(request=request), Control())[1]


def _parts(
    request: Callable[[], TrainRequest], phases: Iterable[tuple[Any, str]]
) -> list[Callable[[], None]]:
    """Planning and then these phases, as the supervisor has workers do them."""
    jobs: list[Job] = []

    def phase(function: Any, name: str) -> Callable[[], None]:
        return lambda: _phase(function, name, jobs[-1])

    return [
        lambda: jobs.append(_prepared(request())),
        *(phase(function, name) for function, name in phases),
    ]


def _tree(place: Path, suffix: str) -> dict[str, str]:
    return {
        path.relative_to(place).as_posix(): sha256_file(path)
        for path in sorted(place.rglob(f"*{suffix}"))
        if not path.name.startswith(".")
    }


def train(bundle: Path, data: Path) -> Command:
    """Plan, precompute, train and evaluate."""

    def parts(place: Path) -> list[Callable[[], None]]:
        phases = ((fill, "precompute"), (fit, "train"), (score, "evaluate"))
        return _parts(lambda: _request(place, bundle, data), phases)

    def state(place: Path) -> Any:
        record = json.loads((place / "run" / "adapter.json").read_text())
        return [sha256_file(place / "run" / "adapter.safetensors"), record["classes"]]

    return Command("train", None, parts, state, replaces=False)


def precompute(bundle: Path, data: Path) -> Command:
    """The cache alone: what is found in it afterwards is the same."""

    def request(place: Path) -> TrainRequest:
        shutil.rmtree(place / "run", ignore_errors=True)
        return replace(_request(place, bundle, data), run=str(place / "run"), resume=False)

    def parts(place: Path) -> list[Callable[[], None]]:
        return _parts(lambda: request(place), [(fill, "precompute")])

    def state(place: Path) -> Any:
        shards = _tree(place / "cache", ".safetensors")
        found = hashlib.sha256()
        for name in sorted(shards):
            if "index" not in name:
                found.update((place / "cache" / name).read_bytes()[4096:])
        return [len(shards), found.hexdigest()]

    return Command("precompute", None, parts, state, replaces=False)


def condense(bundle: Path, data: Path) -> Command:
    """A finished run's prompts condensed into a run of its own."""
    trained = train(bundle, data)

    def before(place: Path) -> None:
        trained.act(place)
        (place / "run").rename(place / "trained")

    def request(place: Path) -> TrainRequest:
        made = _request(place, bundle, data, condense=str(place / "trained"))
        return replace(made, overrides=["ladder.prompts.keep=0.5", "condense.epochs=1"])

    def parts(place: Path) -> list[Callable[[], None]]:
        phases = ((fill, "precompute"), (fit, "train"), (score, "evaluate"))
        return _parts(lambda: request(place), phases)

    return Command("condense", before, parts, trained.state, replaces=False)


def deploy_model(bundle: Path, data: Path, run: Path) -> Command:
    """An earlier model file is replaced whole or not at all."""

    def before(place: Path) -> None:
        deploy(run, place / "model.onnx", bundle=bundle, threads=1)

    def act(place: Path) -> None:
        deploy(run, place / "model.onnx", Form(dtype="fp16"), bundle=bundle, threads=1)

    return Command.whole("deploy", before, act, lambda place: _tree(place, ".onnx"))


def export(bundle: Path) -> Command:
    """What `export` does once its graphs are computed: files by other libraries, the manifest."""

    def act(place: Path) -> None:
        manifest = Bundle.reopen(bundle).manifest
        with building(place / "bundle", "bundle") as temporary:
            for path in sorted(bundle.rglob("*")):
                target = temporary / path.relative_to(bundle)
                if path.is_dir():
                    target.mkdir()
                elif path.name != "manifest.json":
                    shutil.copyfile(path, target)
            write_manifest(temporary, replace(manifest, versions={"made": "anew"}))

    def before(place: Path) -> None:
        shutil.copytree(bundle, place / "bundle")

    return Command.whole("export", before, act, lambda place: Bundle.open(place / "bundle").digest)


def archive(bundle: Path) -> Command:
    """A bundle packed as .tar, and unpacked beside it."""

    def act(place: Path) -> None:
        pack(bundle, place / "b.tar")
        unpack(place / "b.tar")

    def state(place: Path) -> Any:
        return [Bundle.open(place / "b.tar").digest]

    return Command.whole("archive", None, act, state)


class _FakeBox:
    """A box with a job's files."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.host, self.received_bytes = files, mock.Mock(), 0
        self.host.name = "barn"

    async def call(self, request: Any, kind: Any, *, sink: Any = None, **_: Any) -> Any:
        if kind is SendAnswer:
            content = self.files[request.name]
            for start in range(0, len(content), 64):
                sink(content[start : start + 64])
            return SendAnswer(len(content))
        files = {
            name: FileRecord(len(content), hashlib.sha256(content).hexdigest())
            for name, content in self.files.items()
        }
        return OutputsAnswer(JobState("done", 0, 1, "systemd", 1.5), files, ())


def pull_job() -> Command:
    """A box's files, over those pulled before."""

    def files(step: int) -> dict[str, bytes]:
        line = b'{"kind": "step", "step": %d, "loss": 0.5}\n' % step
        return {"run/result.json": b'{"steps": %d}' % step, "run/metrics.jsonl": line * 5}

    def fetch(place: Path, step: int) -> None:
        asyncio.run(pull(_FakeBox(files(step)), "job", place))  # type: ignore[arg-type]  # a stand-in

    def state(place: Path) -> Any:
        return _tree(place / "job" / "hosts" / "barn", ".json*")

    return Command.whole(
        "pull", lambda place: fetch(place, 1), lambda place: fetch(place, 2), state
    )
