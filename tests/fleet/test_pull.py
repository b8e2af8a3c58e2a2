"""Pulling: verified, and nothing but adapters, metrics and reports ever leaves a box."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeladder.core.bundle import Bundle
from edgeladder.fleet.box import jobs as agent_jobs
from edgeladder.fleet.box import records, serve
from edgeladder.fleet.box.records import TrainOptions
from edgeladder.fleet.host_pool import run
from edgeladder.fleet.outcomes import HostResult
from edgeladder.fleet.pull import check_adapter, pull
from edgeladder.fleet.push import bundle_tree, push
from edgeladder.fleet.remote_jobs import Waiting, train_job, wait
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


def trained(farm: Any, pool_of: Any, bundle: Bundle) -> Any:
    """All boxes hold pictures and have trained job `t`."""
    for box in farm.boxes.values():
        (box.root / "data" / "cat").mkdir(parents=True)
        (box.root / "data" / "cat" / "1.jpg").write_bytes(PICTURE)
    tree = bundle_tree(bundle.folder)
    run(pool_of(farm).each("push", lambda box: push(box, tree)))
    pool = pool_of(farm)
    jobs = {host.name: train_job(host, TrainOptions(bundle.digest), "t") for host in pool.hosts}
    return run(wait(pool, jobs, Waiting(0.05)))


def pull_all(farm: Any, pool_of: Any, bundle: Bundle, out: Path) -> Any:
    manifest = bundle.manifest
    return run(pool_of(farm).each("pull", lambda box: pull(box, "t", out, manifest=manifest)))


def pieces_of_the_picture(data: bytes) -> bool:
    return any(PICTURE[i : i + 32] in data for i in range(0, len(PICTURE) - 32, 32))


def test_nothing_but_adapters_and_metrics_leaves(
    make_farm: Any, pool_of: Any, bundle: Bundle, tmp_path: Path, received: bytearray
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
                "report": {"report": "<html><script>alert(1)</script></html>"},
                "head": {"extra_tensor": picture, "extra_name": "head:support"},
                "lines": {},
            }[name]
        )
    outcome = trained(farm, pool_of, bundle)
    assert not outcome.failed
    run_of = {name: box.root / "jobs" / "t" / "run" for name, box in farm.boxes.items()}
    with open(run_of["tail"] / "adapter.safetensors", "ab") as stream:
        stream.write(PICTURE)
    with open(run_of["lines"] / "metrics.jsonl", "ab") as stream:
        stream.write(PICTURE)
    (run_of["honest"] / "1.jpg").write_bytes(PICTURE)
    (run_of["honest"] / "inputs.json").write_bytes(PICTURE)
    del received[:]
    outcome = pull_all(farm, pool_of, bundle, tmp_path / "out")
    assert outcome.names("done") == ["honest", "report", "head"]
    kept_there = {r.host: r.facts.get("kept_there") for r in outcome.results}
    assert kept_there["head"] == ["run/adapter.safetensors"]
    errors = {r.host: r.error["message"] for r in outcome.results if r.error}
    assert "no regular file" in errors["link"]
    assert "'pixels' is not of this bundle's ladder" in errors["tensor"]
    assert "no tensor" in errors["tail"]
    assert "not what it should be" in errors["lines"]
    kept = sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert {p.name for p in kept} == {
        "adapter.json", "adapter.safetensors", "config.yaml", "metrics.jsonl", "pull.json",
        "report.html", "result.json",
    }  # fmt: skip
    assert not any(pieces_of_the_picture(p.read_bytes()) for p in kept)
    page = tmp_path / "out" / "t" / "hosts" / "report" / "report.html"  # the controller's own
    assert "<script" not in page.read_text() and "<h1>report</h1>" in page.read_text()
    there, missing = contributions(tmp_path / "out", "t", ["honest", "head", "link"])
    assert [c.name for c in there] == ["honest"]
    reasons = {r.host: (r.error or {}) for r in missing}
    assert "head={kind: none" in str(reasons["head"]["remedy"])  # pulling again would not help
    assert "fleet pull" in str(reasons["link"]["remedy"])
    # what honest boxes send holds no picture even on the way
    del received[:]
    run(pool_of(farm, parallel=1).each("status", _everything))
    assert len(received) > 1000 and not pieces_of_the_picture(bytes(received))


async def _everything(box: Box) -> Any:
    """Ask for all that the agent would send of an honest box."""
    if box.host.name == "honest":
        for name in ("metrics.jsonl", "adapter.safetensors", "adapter.json"):
            asked = records.SendRequest("t", f"run/{name}")
            await box.call(asked, records.SendAnswer, sink=lambda block: None)
        await box.call(records.OutputsRequest("t"), records.OutputsAnswer)
        await box.call(records.ProbeRequest("/none"), records.ProbeAnswer)
        await box.call(records.StatusRequest("t", "log"), records.StatusAnswer)
    return HostResult(box.host.name, "done")


def answered(root: Path, request: Any) -> bytes:
    """What the agent says to a request: a record of ours, or values that somebody made up."""
    out = io.BytesIO()
    line = json.dumps({"root": str(root), "request": records.to_json(request)}).encode()
    serve.answer(line, io.BytesIO(), out)
    return out.getvalue()


@pytest.mark.parametrize(
    "name",
    ["run/1.jpg", "../../data/cat/1.jpg", "run/inputs.json", "run/checkpoints/a", "/etc/passwd"],
)
def test_the_agent_has_no_way_to_send_another_file(tmp_path: Path, name: str) -> None:
    folder = Path(agent_jobs.job_folder(str(tmp_path), "t")) / "run"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(PICTURE)
    for request in (records.SendRequest("t", name), records.StatusRequest("t", name)):
        said = answered(tmp_path, request)
        assert json.loads(said.splitlines()[0])["is"] == "Refusal"
        assert not pieces_of_the_picture(said)


def test_operations_that_read_files_are_known() -> None:
    """A new operation of the agent has to be thought about here."""
    assert {kind.__name__ for kind in serve.OPERATIONS} == {
        "ProbeRequest", "HaveRequest", "AssembleRequest", "PruneRequest", "StartRequest",
        "StatusRequest", "StopRequest", "OutputsRequest",
    }  # fmt: skip
    assert not any("jpg" in name or "data" in name for name in agent_jobs.PULLABLE)


def test_second_pull_is_unchanged_and_damage_is_pulled_again(
    make_farm: Any, pool_of: Any, bundle: Bundle, tmp_path: Path
) -> None:
    farm = make_farm("a", "b")
    trained(farm, pool_of, bundle)
    out = tmp_path / "out"
    assert pull_all(farm, pool_of, bundle, out).names("done") == ["a", "b"]
    assert pull_all(farm, pool_of, bundle, out).names("unchanged") == ["a", "b"]
    adapter = out / "t" / "hosts" / "a" / "adapter.safetensors"
    adapter.write_bytes(b"damaged")
    outcome = pull_all(farm, pool_of, bundle, out)
    assert outcome.names("done") == ["a"] and outcome.names("unchanged") == ["b"]
    assert adapter.stat().st_size > 64


def test_a_broken_pull_leaves_the_old_files(
    make_farm: Any, pool_of: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm("a")
    trained(farm, pool_of, bundle)
    out = tmp_path / "out"
    pull_all(farm, pool_of, bundle, out)
    adapter = out / "t" / "hosts" / "a" / "adapter.safetensors"
    before = adapter.read_bytes()
    there = farm.boxes["a"].root / "jobs" / "t" / "run" / "adapter.safetensors"
    there.write_bytes(there.read_bytes()[:-4])
    outcome = pull_all(farm, pool_of, bundle, out)
    assert (outcome.results[0].error or {})["kind"] == "integrity"
    assert adapter.read_bytes() == before
    monkeypatch.setattr("edgeladder.fleet.pull.ADAPTER_LIMIT_BYTES", 10)
    outcome = pull_all(farm, pool_of, bundle, out)
    assert "at most 10 are taken" in str((outcome.results[0].error or {})["message"])


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
    with pytest.raises(ValueError, match="should be of floats"):
        check(values[name].astype(np.int64), name)
