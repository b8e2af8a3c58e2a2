"""One adapter judged on every box's own test pictures; only the tables come back."""

from __future__ import annotations

from pathlib import Path

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.core.intervals import of_share
from edgeladder.core.signature import require_trusted
from edgeladder.fleet.averaging import ADAPTER
from edgeladder.fleet.host_pool import HostPool, LiveHosts
from edgeladder.fleet.outcomes import FleetOutcome
from edgeladder.fleet.pull import pull
from edgeladder.fleet.pulled import PulledResult, host_folder, require_own_folders
from edgeladder.fleet.push import adapter_tree, bundle_tree, push
from edgeladder.fleet.remote_jobs import Waiting, evaluate_job, wait


async def evaluate(
    pool: HostPool, bundle: Bundle, adapter: Path, out: Path, waiting: Waiting
) -> FleetOutcome:
    """Push `adapter` (a folder), evaluate it on all boxes, pull the results.

    Returns:
        The outcome with each box's accuracy, and the mean over all pictures in its facts.

    Raises:
        ConfigError: there is no adapter in the folder.
        IntegrityError: publishers are pinned, and none of them signed it.
    """
    if not (adapter / ADAPTER).is_file():
        raise ConfigError(
            "no adapter here", where=str(adapter), remedy="name a folder with adapter.safetensors"
        )
    require_trusted(adapter, "adapter")
    tree, extra = bundle_tree(bundle.folder), adapter_tree(adapter)
    jobs = {host.name: evaluate_job(host, tree.digest, extra.digest) for host in pool.hosts}
    job = next(iter(jobs.values())).id
    require_own_folders(out, job, list(jobs))
    live = LiveHosts(pool)
    await live.each("push", lambda box: push(box, tree))
    await live.each("push", lambda box: push(box, extra, switch=False))
    found: list[PulledResult] = []
    if names := [host.name for host in live.pool.hosts]:
        live.take(await wait(live.pool, {name: jobs[name] for name in names}, waiting))
        await live.each("pull", lambda box: pull(box, job, out))
        for host in live.pool.hosts:
            result = PulledResult.read(host_folder(out, job, host.name))
            found.append(result)
            count = result.test_count
            live.results[host.name].facts.update(
                accuracy=result.tuned,
                interval=of_share(result.tuned, count or 0),
                zero_shot_accuracy=result.zero_shot,
                count=count,
            )
    return FleetOutcome("evaluate", [live.results[host.name] for host in pool.hosts], _mean(found))


def _mean(found: list[PulledResult]) -> dict[str, object]:
    """Accuracy over the pictures of all boxes together."""
    rows = [(r.test_count, r.tuned) for r in found if r.test_count and r.tuned is not None]
    count = sum(n for n, _ in rows)
    if not rows:
        return {}
    share = sum(n * a for n, a in rows) / count
    return {"accuracy": share, "interval": of_share(share, count), "count": count}
