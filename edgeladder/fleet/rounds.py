"""Federated rounds: every box trains on its own pictures, only adapters travel.

    OUT/NAME-r1/hosts/HOST/...     what each box's training gave
    OUT/NAME-r1/average/           the round's average, from which round 2 starts

Everything is found again from these files and from the boxes' jobs: a second call of the same
rounds does only what is missing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, EdgeLadderError
from edgeladder.core.files import write_json
from edgeladder.core.signature import sign, verify
from edgeladder.fleet.aggregate import TooFew, aggregate
from edgeladder.fleet.averaging import (
    ADAPTER,
    BY_PICTURES,
    HEADLESS,
    AggregateResult,
    Averaging,
    Contribution,
    Start,
)
from edgeladder.fleet.box.records import TrainOptions
from edgeladder.fleet.host_pool import HostPool, LiveHosts
from edgeladder.fleet.outcomes import FleetOutcome, HostError, HostResult, failed
from edgeladder.fleet.pull import check_adapter, pull
from edgeladder.fleet.pulled import (
    REFUSED,
    PulledResult,
    PullRecord,
    host_folder,
    reasons,
    remember_failures,
    require_own_folders,
)
from edgeladder.fleet.push import Tree, adapter_tree, bundle_tree, push
from edgeladder.fleet.remote_jobs import Job, Waiting, train_job, wait


@dataclass(frozen=True)
class RoundOptions:
    """Which rounds, and how."""

    name: str  # their jobs are NAME-r1, NAME-r2, ...
    count: int
    out: Path
    averaging: Averaging = BY_PICTURES
    quorum: float = 0.5  # share of the hosts without whose adapters a round does not count
    waiting: Waiting = Waiting()
    say: Callable[[str], None] = lambda text: None


def contributions(
    out: Path, job: str, hosts: list[str]
) -> tuple[list[Contribution], list[HostResult]]:
    """Pulled adapters of a job, and a failed result for each host without one."""
    found = []
    missing = []
    for name in hosts:
        try:
            found.append(_contribution(host_folder(out, job, name), job, name))
        except (EdgeLadderError, OSError, ValueError) as error:
            missing.append(failed(name, error))
    return found, missing


def _contribution(folder: Path, job: str, name: str) -> Contribution:
    record = PullRecord.read(folder)
    if record is not None and f"run/{ADAPTER}" in record.kept:
        raise HostError(
            "its adapter has a closed-form head, which holds features of its pictures and "
            "stayed on the box",
            kind="refused",
            where=str(folder),
            remedy=f"`edgeladder fleet train --set '{HEADLESS}'` trains without, as "
            "`fleet rounds` does",
        )
    if not (folder / ADAPTER).is_file():
        raise HostError(
            "no adapter was pulled",
            kind="integrity",
            where=str(folder),
            remedy=f"`edgeladder fleet pull --job {job} --limit {name}`",
        )
    pictures = PulledResult.read(folder).train_count
    if not pictures or pictures < 0:
        raise HostError(
            "its result does not say how many pictures it was trained on",
            kind="integrity",
            where=str(folder),
        )
    return Contribution(name, folder, float(pictures))


def average_folder(out: Path, job: str) -> Path:
    """Where a job's average lies."""
    return out / job / "average"


def aggregate_job(
    out: Path,
    job: str,
    hosts: list[str],
    bundle: Bundle,
    averaging: Averaging,
    *,
    start: Path | None = None,
    minimum: int = 1,
) -> FleetOutcome:
    """Average a job's pulled adapters; refused and missing ones are failures in the outcome.

    Args:
        start: what the boxes began from; None: the bundle's own parameters.
        minimum: adapters that must remain.

    Raises:
        TooFew, IntegrityError, ConfigError: as `aggregate`.
    """
    require_own_folders(out, job, hosts)
    there, results = contributions(out, job, hosts)
    ladder = bundle.manifest.ladder
    origin = Start(bundle.path(ladder.initial), [record.name for record in ladder.parameters])
    try:
        if not there:
            raise TooFew("no adapters to average", AggregateResult(averaging.method))
        result = aggregate(
            there,
            average_folder(out, job),
            averaging,
            start=Start(start) if start else origin,
            bundle_digest=bundle.digest,
            minimum=minimum,
            check=lambda path: check_adapter(path, bundle.manifest),
        )
    except TooFew as few:
        write_json(out / job / REFUSED, few.result.refused)
        few.result.refused.update({r.host: str((r.error or {})["message"]) for r in results})
        raise
    write_json(out / job / REFUSED, result.refused)
    results += [_refused(name, why) for name, why in result.refused.items()]
    for name, weight in result.weights.items():
        distance = result.distances[name]
        results.append(HostResult(name, "done", {"weight": weight, "distance": distance}))
    results.sort(key=lambda result: hosts.index(result.host))
    average = str(average_folder(out, job))
    facts: dict[str, object] = {"job": job, "average": average, "method": averaging.method}
    return FleetOutcome("aggregate", results, facts)


def sign_average(average: Path, key: Path | None) -> None:
    """Sign an average with the fleet's own key, unless it is signed: boxes that pin ask for it.

    Raises:
        ConfigError: the key cannot be used.
    """
    if key is not None and verify(average, "adapter") is None:
        sign(average, "adapter", key)


def _require_signing(pool: HostPool, count: int) -> None:
    """Refuse rounds whose averages no box would take.

    Raises:
        ConfigError: the fleet pins publishers, and has no key to sign averages with.
    """
    if pool.hosts and pool.hosts[0].trusted_keys and pool.signing_key is None and count > 1:
        raise ConfigError(
            "this fleet pins publishers, and nobody signs the averages that boxes start from",
            where="the inventory",
            remedy="name a private key as `signing_key`, its public half among `trusted_keys`",
        )


def _refused(name: str, why: str) -> HostResult:
    return failed(name, HostError(f"adapter refused: {why}", kind="integrity", where=name))


async def rounds(
    pool: HostPool, bundle: Bundle, train: TrainOptions, options: RoundOptions
) -> FleetOutcome:
    """Repeat push, train, pull and aggregate.

    A host that fails in one round is asked again in the next: a box that was away for a while
    comes back with the newest average.

    Returns:
        The outcome of the last round, with every round's in its facts. A round with fewer
        adapters than the quorum is the last (`stopped` says so); the rounds before it stand.
    """
    headless = dataclasses.replace(train, overrides=(*train.overrides, HEADLESS))
    _require_signing(pool, options.count)
    averaging = dataclasses.replace(options.averaging, shots=train.shots)
    options = dataclasses.replace(options, averaging=averaging)
    work = _Rounds(pool, bundle, bundle_tree(bundle.folder), headless, options)
    out = options.out
    start: Path | None = None
    history: list[dict[str, object]] = []
    outcome = FleetOutcome("rounds", [])
    jobs = [f"{options.name}-r{number}" for number in range(1, options.count + 1)]
    for job in jobs:
        require_own_folders(out, job, [host.name for host in pool.hosts])
    for number, job in enumerate(jobs, 1):
        average = average_folder(out, job)
        found = _finished(average, pool, last=number == options.count)
        if found is not None:
            options.say(f"round {number}: there already")
            outcome = _remembered(found, pool)
        else:
            options.say(f"round {number}: training on {len(pool.hosts)} hosts")
            async with pool.lasting():
                outcome = await work.one(job, start)
            remember_failures(out, job, outcome)
        errors = {r.host: r.error["message"] for r in outcome.results if r.error}
        done = outcome.names("done", "unchanged")
        history.append({"round": number, "job": job, "done": done, "failed": errors})
        if outcome.stopped:
            break
        sign_average(average, pool.signing_key)
        start = average / ADAPTER
    outcome.facts = {
        "name": options.name, "rounds": history, "average": str(start.parent if start else "")
    }  # fmt: skip
    return outcome


def _finished(average: Path, pool: HostPool, *, last: bool) -> AggregateResult | None:
    """A round that stands: the last one is opened again for hosts that are not in it yet."""
    found = AggregateResult.read(average) if (average / ADAPTER).is_file() else None
    missing = found is not None and not {h.name for h in pool.hosts} <= set(found.weights)
    return None if last and missing else found


def _remembered(found: AggregateResult, pool: HostPool) -> FleetOutcome:
    """The outcome of a round that was finished before."""
    results = []
    for host in pool.hosts:
        if host.name in found.weights:
            weight = found.weights[host.name]
            results.append(HostResult(host.name, "unchanged", {"weight": weight}))
        else:
            why = found.refused.get(host.name, "took no part in this finished round")
            results.append(failed(host.name, HostError(why, kind="integrity")))
    return FleetOutcome("rounds", results)


@dataclass(frozen=True)
class _Rounds:
    """What all rounds of one call share."""

    pool: HostPool
    bundle: Bundle
    tree: Tree
    train: TrainOptions
    options: RoundOptions

    async def one(self, job: str, start: Path | None) -> FleetOutcome:
        """Push, train, pull and average once; `start` is the average before."""
        out = self.options.out
        live, train = LiveHosts(self.pool), self.train
        await live.each("push", lambda box: push(box, self.tree))
        if start is not None:
            sign_average(start.parent, self.pool.signing_key)
            adapter = adapter_tree(start.parent)
            train = dataclasses.replace(train, adapter_digest=adapter.digest)
            await live.each("push", lambda box: push(box, adapter))
        jobs: dict[str, Job] = {}
        for host in live.pool.hosts:
            unwanted = _unwanted(out, job, host.name)
            jobs[host.name] = dataclasses.replace(train_job(host, train, job), supersede=unwanted)
        if jobs:
            live.take(await wait(live.pool, jobs, self.options.waiting))
            manifest = self.bundle.manifest
            await live.each("pull", lambda box: pull(box, job, out, manifest=manifest))
        return self._average(job, start, live)

    def _average(self, job: str, start: Path | None, live: LiveHosts) -> FleetOutcome:
        options = self.options
        names = [host.name for host in live.pool.hosts]
        minimum = max(1, math.ceil(options.quorum * len(self.pool.hosts)))
        stopped = None
        try:
            if len(names) < minimum:
                nothing = AggregateResult(options.averaging.method)
                raise TooFew(f"{len(names)} adapters came", nothing)
            average = aggregate_job(
                options.out, job, names, self.bundle, options.averaging, start=start,
                minimum=minimum,
            )  # fmt: skip
            live.take(average)
        except TooFew as few:  # those trained are kept
            refused = few.result.refused
            kept = [name for name in names if name not in refused]
            ends = [HostResult(name, "done", {"job": job}) for name in kept]
            ends += [_refused(name, why) for name, why in refused.items()]
            live.take(FleetOutcome("rounds", ends))
            stopped = (
                f"{len(kept)} of {len(self.pool.hosts)} hosts have an adapter, {minimum} are "
                f"needed for {job}"
            )
        results = [live.results[host.name] for host in self.pool.hosts]
        return FleetOutcome("rounds", results, stopped=stopped)


def _unwanted(out: Path, job: str, host: str) -> int | None:
    """The attempt that gave a refused adapter, which is not asked for again."""
    record = PullRecord.read(host_folder(out, job, host))
    return record.attempts if record and host in reasons(out, job, REFUSED) else None
