"""Pulling: verified, and nothing but adapters, metrics and reports ever leaves a box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeladder.core.bundle import Bundle
from edgeladder.fleet.box import jobs as agent_jobs
from edgeladder.fleet.box import serve
from edgeladder.fleet.crew import run
from edgeladder.fleet.pull import check_adapter, pull
from edgeladder.fleet.push import bundle_tree, push
from edgeladder.fleet.remote_jobs import TrainOptions, train_job, wait
from edgeladder.fleet.rounds import contributions
from edgeladder.fleet.transport import Box

PICTURE = np.random.default_rng(7).bytes(4096)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """Every byte that any box sent to the controller over its channels."""
    import asyncssh

    seen = bytearray()
    read = asyncssh.SSHReader.read

    async def recording(self: Any, n: int = -1) -> Any:
        block = await read(self, n)
        seen.extend(block if isinstance(block, bytes) else block.encode())
        return block

    monkeypatch.setattr(asyncssh.SSHReader, "read", recording)
    return seen


def trained(farm: Any, crew_of: Any, bundle: Bundle) -> Any:
    """All boxes hold pictures and have trained job `t`."""
    for box in farm.boxes.values():
        (box.root / "data" / "cat").mkdir(parents=True)
        (box.root / "data" / "cat" / "1.jpg").write_bytes(PICTURE)
    tree = bundle_tree(bundle.folder)
    run(crew_of(farm).each("push", lambda box: push(box, tree)))
    crew = crew_of(farm)
    jobs = {host.name: train_job(host, TrainOptions(bundle.digest), "t") for host in crew.hosts}
    return run(wait(crew, jobs, poll_seconds=0.05))


def pull_all(farm: Any, crew_of: Any, bundle: Bundle, out: Path) -> Any:
    manifest = bundle.manifest
    return run(crew_of(farm).each("pull", lambda box: pull(box, "t", out, manifest=manifest)))


def pieces_of_the_picture(data: bytes) -> bool:
    return any(PICTURE[i : i + 32] in data for i in range(0, len(PICTURE) - 32, 32))


def test_nothing_but_adapters_and_metrics_leaves(
    make_farm: Any, crew_of: Any, bundle: Bundle, tmp_path: Path, received: bytearray
) -> None:
    """Honest boxes, and four that try to smuggle a picture out in each way there is."""
    farm = make_farm("honest", "link", "tensor", "tail", "report", "head", "lines")
    for name, box in farm.boxes.items():
        picture = str(box.root / "data" / "cat" / "1.jpg")
        box.behave(
            **{
                "honest": {},
                "link": {"link": picture},
                "tensor": {"extra_tensor": picture},
                "tail": {},
                "report": {"report": "<html><img src='data:image/jpeg;base64,AAAA'></html>"},
                "head": {"extra_tensor": picture, "extra_name": "head:support"},
                "lines": {},
            }[name]
        )
    account = trained(farm, crew_of, bundle)
    assert not account.failed
    run_of = {name: box.root / "jobs" / "t" / "run" for name, box in farm.boxes.items()}
    with open(run_of["tail"] / "adapter.safetensors", "ab") as stream:
        stream.write(PICTURE)
    with open(run_of["lines"] / "metrics.jsonl", "ab") as stream:
        stream.write(PICTURE)
    (run_of["honest"] / "1.jpg").write_bytes(PICTURE)
    (run_of["honest"] / "inputs.json").write_bytes(PICTURE)
    del received[:]
    account = pull_all(farm, crew_of, bundle, tmp_path / "out")
    assert account.names("done") == ["honest", "report", "head"]
    kept_there = {r.host: r.facts.get("kept_there") for r in account.results}
    assert kept_there["report"] == ["run/report.html"]
    assert kept_there["head"] == ["run/adapter.safetensors"]
    errors = {r.host: r.error["message"] for r in account.results if r.error}
    assert "no regular file" in errors["link"]
    assert "'pixels' is not of this bundle's ladder" in errors["tensor"]
    assert "no tensor" in errors["tail"]
    assert "not what it should be" in errors["lines"]
    kept = sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert {p.name for p in kept} == {
        "adapter.json", "adapter.safetensors", "config.yaml", "metrics.jsonl", "pull.json",
        "result.json",
    }  # fmt: skip
    assert not any(pieces_of_the_picture(p.read_bytes()) for p in kept)
    assert not (tmp_path / "out" / "t" / "hosts" / "report" / "report.html").exists()
    there, missing = contributions(tmp_path / "out", "t", ["honest", "head", "link"])
    assert [c.name for c in there] == ["honest"]
    reasons = {r.host: (r.error or {}) for r in missing}
    assert "head={kind: none}" in str(reasons["head"]["remedy"])  # pulling again would not help
    assert "fleet pull" in str(reasons["link"]["remedy"])
    # what honest boxes send holds no picture even on the way
    del received[:]
    run(crew_of(farm, parallel=1).each("status", _everything))
    assert len(received) > 1000 and not pieces_of_the_picture(bytes(received))


async def _everything(box: Box) -> Any:
    """Ask for all that the agent would send of an honest box."""
    from edgeladder.fleet.account import HostResult

    if box.host.name == "honest":
        for name in ("metrics.jsonl", "adapter.safetensors", "adapter.json"):
            await box.call("send", job="t", name=f"run/{name}", sink=lambda block: None)
        await box.call("outputs", job="t")
        await box.call("probe", program="/none", data=None)
        await box.call("status", job="t", follow="log")
    return HostResult(box.host.name, "done")


@pytest.mark.parametrize(
    "name",
    ["run/1.jpg", "../../data/cat/1.jpg", "run/inputs.json", "run/checkpoints/a", "/etc/passwd"],
)
def test_the_agent_has_no_way_to_send_another_file(tmp_path: Path, name: str) -> None:
    folder = Path(agent_jobs.job_folder(str(tmp_path), "t")) / "run"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(PICTURE)
    for op, key in (("send", "name"), ("status", "follow")):
        import io

        out = io.BytesIO()
        request: Any = {"op": op, "root": str(tmp_path), "job": "t", key: name}
        serve.answer(request, io.BytesIO(), out)  # type: ignore[arg-type]
        assert "error" in json.loads(out.getvalue().splitlines()[0])
        assert not pieces_of_the_picture(out.getvalue())


def test_operations_that_read_files_are_known() -> None:
    """A new operation of the agent has to be thought about here."""
    assert set(serve.OPERATIONS) == {
        "probe", "have", "receive", "assemble", "prune", "start", "status", "stop", "outputs",
        "send",
    }  # fmt: skip
    assert not any("jpg" in name or "data" in name for name in agent_jobs.PULLABLE)


def test_second_pull_is_unchanged_and_damage_is_pulled_again(
    make_farm: Any, crew_of: Any, bundle: Bundle, tmp_path: Path
) -> None:
    farm = make_farm("a", "b")
    trained(farm, crew_of, bundle)
    out = tmp_path / "out"
    assert pull_all(farm, crew_of, bundle, out).names("done") == ["a", "b"]
    assert pull_all(farm, crew_of, bundle, out).names("unchanged") == ["a", "b"]
    adapter = out / "t" / "hosts" / "a" / "adapter.safetensors"
    adapter.write_bytes(b"damaged")
    account = pull_all(farm, crew_of, bundle, out)
    assert account.names("done") == ["a"] and account.names("unchanged") == ["b"]
    assert adapter.stat().st_size > 64


def test_a_broken_pull_leaves_the_old_files(
    make_farm: Any, crew_of: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm("a")
    trained(farm, crew_of, bundle)
    out = tmp_path / "out"
    pull_all(farm, crew_of, bundle, out)
    adapter = out / "t" / "hosts" / "a" / "adapter.safetensors"
    before = adapter.read_bytes()
    there = farm.boxes["a"].root / "jobs" / "t" / "run" / "adapter.safetensors"
    there.write_bytes(there.read_bytes()[:-4])
    account = pull_all(farm, crew_of, bundle, out)
    assert (account.results[0].error or {})["kind"] == "integrity"
    assert adapter.read_bytes() == before
    monkeypatch.setattr("edgeladder.fleet.pull.ADAPTER_LIMIT_BYTES", 10)
    account = pull_all(farm, crew_of, bundle, out)
    assert "at most 10 are taken" in str((account.results[0].error or {})["message"])


def test_prompts_may_be_stored_smaller_but_never_larger(bundle: Bundle, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    ladder = bundle.manifest.ladder
    values = {r.name: np.zeros(r.shape, np.float32) for r in ladder.parameters}
    name = max(values, key=lambda name: values[name].size)
    path = tmp_path / "adapter.safetensors"

    def check(packed: np.ndarray, label: str = f"packed:{name}") -> None:
        rest = {key: value for key, value in values.items() if key != name}
        save_file({**rest, label: packed}, path)
        check_adapter(path, bundle.manifest)

    check(np.zeros(values[name].size // 8, np.uint8))
    check(np.zeros((0, 1), np.float32))
    with pytest.raises(ValueError, match="is larger than"):
        check(np.zeros(values[name].size * 4 + 1, np.uint8))
    with pytest.raises(ValueError, match="not of this bundle's ladder"):
        check(np.zeros(3, np.uint8), "packed:picture")
