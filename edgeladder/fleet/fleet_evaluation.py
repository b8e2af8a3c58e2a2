"""One adapter judged on every box's own test pictures; only the tables come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import read_json
from edgeladder.fleet.account import Account, HostResult
from edgeladder.fleet.aggregate import ADAPTER, CARD
from edgeladder.fleet.crew import Crew
from edgeladder.fleet.pull import host_folder, pull, require_own_folders
from edgeladder.fleet.push import bundle_tree, push, tree_of
from edgeladder.fleet.remote_jobs import Progress, evaluate_job, wait


async def evaluate(
    crew: Crew,
    bundle: Bundle,
    adapter: Path,
    out: Path,
    *,
    poll_seconds: float = 2.0,
    watch: Callable[[dict[str, Progress]], None] = lambda known: None,
) -> Account:
    """Push `adapter` (a folder), evaluate it on all boxes, pull the results.

    Returns:
        The account with each box's accuracy, and the mean over all pictures in its facts.

    Raises:
        ConfigError: there is no adapter in the folder.
    """
    if not (adapter / ADAPTER).is_file():
        raise ConfigError(
            "no adapter here", where=str(adapter), remedy="name a folder with adapter.safetensors"
        )
    results: dict[str, HostResult] = {}

    def carry_on(account: Account) -> Crew:
        results.update({result.host: result for result in account.results})
        alive = [h for h in crew.hosts if results[h.name].state != "failed"]
        return dataclasses.replace(crew, hosts=alive)

    tree, extra = bundle_tree(bundle.folder), tree_of("adapter", adapter, [ADAPTER, CARD])
    for host in crew.hosts:
        require_own_folders(out, evaluate_job(host, bundle.digest, extra.digest).id, [host.name])
    live = carry_on(await crew.each("push", lambda box: push(box, tree)))
    live = carry_on(await live.each("push", lambda box: push(box, extra, switch=False)))
    jobs = {host.name: evaluate_job(host, bundle.digest, extra.digest) for host in live.hosts}
    if jobs:
        job = next(iter(jobs.values())).id
        live = carry_on(await wait(live, jobs, poll_seconds=poll_seconds, watch=watch))
        live = carry_on(await live.each("pull", lambda box: pull(box, job, out)))
        for host in live.hosts:
            values = read_json(host_folder(out, job, host.name) / "result.json")
            wanted = ("accuracy", "zero_shot_accuracy", "count")
            results[host.name].facts.update({key: values.get(key) for key in wanted})
    account = Account("evaluate", [results[host.name] for host in crew.hosts])
    account.facts.update(_pooled(account))
    return account


def _pooled(account: Account) -> dict[str, float | int]:
    """Accuracy over the pictures of all boxes together."""
    rows = [
        (r.facts["count"], r.facts["accuracy"])
        for r in account.results
        if isinstance(r.facts.get("count"), int) and isinstance(r.facts.get("accuracy"), float)
    ]
    count = sum(n for n, _ in rows)
    return {"accuracy": sum(n * a for n, a in rows) / count, "count": count} if count else {}
