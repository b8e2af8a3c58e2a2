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
from typing import Any

from edgeladder.core.bundle import Bundle
from edgeladder.core.files import read_json, write_json
from edgeladder.fleet.account import Account, HostError, HostResult, failed
from edgeladder.fleet.aggregate import (
    ADAPTER,
    CARD,
    HEADLESS,
    AggregateResult,
    Contribution,
    Method,
    TooFew,
    aggregate,
)
from edgeladder.fleet.crew import Crew
from edgeladder.fleet.pull import (
    RECORD,
    host_folder,
    pull,
    remember_failures,
    require_own_folders,
)
from edgeladder.fleet.push import bundle_tree, push, tree_of
from edgeladder.fleet.remote_jobs import Progress, TrainOptions, train_job, wait

REFUSED = "refused.json"  # of a job: host -> why its adapter is in no average


@dataclass(frozen=True)
class RoundOptions:
    """How boxes' adapters become one."""

    method: Method = "mean"
    trim: float = 0.2
    bound: float = 10.0
    quorum: float = 0.5  # share of the hosts without whose adapters a round does not count
    poll_seconds: float = 5.0
    patience_seconds: float = 600.0


def pictures_of(folder: Path) -> float:
    """Number of pictures a pulled run was trained on: an adapter's weight in the mean.

    Raises:
        HostError: the run does not say.
    """
    path = folder / "result.json"
    values = read_json(path) if path.is_file() and path.stat().st_size else {}
    counts = values.get("counts")
    pictures = counts.get("train") if isinstance(counts, dict) else None
    if isinstance(pictures, int) and pictures > 0:
        return float(pictures)
    raise HostError(
        "its result does not say how many pictures it was trained on",
        kind="integrity",
        where=str(folder),
    )


def contributions(
    out: Path, job: str, hosts: list[str]
) -> tuple[list[Contribution], list[HostResult]]:
    """Pulled adapters of a job, and a failed result for each host without one."""
    found = []
    missing = []
    for name in hosts:
        folder = host_folder(out, job, name)
        try:
            record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
            if f"run/{ADAPTER}" in record.get("kept", []):
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
            found.append(Contribution(name, folder, pictures_of(folder)))
        except HostError as error:
            missing.append(failed(name, error))
    return found, missing


def average_folder(out: Path, job: str) -> Path:
    """Where a job's average lies."""
    return out / job / "average"


def aggregate_job(
    out: Path,
    job: str,
    hosts: list[str],
    options: RoundOptions,
    bundle: Bundle,
    *,
    start: Path | None = None,
    minimum: int = 1,
) -> Account:
    """Average a job's pulled adapters; refused and missing ones are failures in the account.

    Args:
        start: what the boxes began from; None: the bundle's own parameters.
        minimum: adapters that must remain.

    Raises:
        TooFew, IntegrityError, ConfigError: as `aggregate`.
    """
    require_own_folders(out, job, hosts)
    there, results = contributions(out, job, hosts)
    try:
        if not there:
            raise TooFew("no adapters to average", AggregateResult(options.method))
        result = aggregate(
            there,
            average_folder(out, job),
            method=options.method,
            trim=options.trim,
            bound=options.bound,
            start=start or bundle.path(bundle.manifest.ladder.initial),
            zeros=() if start else [record.name for record in bundle.manifest.ladder.parameters],
            bundle_digest=bundle.digest,
            minimum=minimum,
        )
    except TooFew as few:
        write_json(out / job / REFUSED, few.result.refused)
        few.result.refused.update({r.host: str((r.error or {})["message"]) for r in results})
        raise
    write_json(out / job / REFUSED, result.refused)
    for name, why in result.refused.items():
        error = HostError(f"adapter refused: {why}", kind="integrity", where=name)
        results.append(failed(name, error))
    for name, weight in result.weights.items():
        distance = result.distances[name]
        results.append(HostResult(name, "done", {"weight": weight, "distance": distance}))
    order = {name: index for index, name in enumerate(hosts)}
    results.sort(key=lambda result: order[result.host])
    facts = {"job": job, "average": str(average_folder(out, job)), "method": options.method}
    return Account("aggregate", results, facts)


async def rounds(
    crew: Crew,
    bundle: Bundle,
    train: TrainOptions,
    *,
    name: str,
    count: int,
    out: Path,
    options: RoundOptions,
    watch: Callable[[dict[str, Progress]], None] = lambda known: None,
    say: Callable[[str], None] = lambda text: None,
) -> Account:
    """Repeat push, train, pull and aggregate.

    A host that fails in one round is asked again in the next: a box that was away for a while
    comes back with the newest average.

    Returns:
        The account of the last round, with every round's in its facts. A round with fewer
        adapters than the quorum is the last (`stopped` says so); the rounds before it stand.
    """
    tree = bundle_tree(bundle.folder)
    train = dataclasses.replace(train, overrides=(*train.overrides, HEADLESS))
    start: Path | None = None
    history: list[dict[str, Any]] = []
    account = Account("rounds", [])
    jobs = [f"{name}-r{number}" for number in range(1, count + 1)]
    for job in jobs:
        require_own_folders(out, job, [host.name for host in crew.hosts])
    for number, job in enumerate(jobs, 1):
        average = average_folder(out, job)
        if _finished(average, crew, last=number == count):
            say(f"round {number}: there already")
            account = _remembered(average, crew)
        else:
            say(f"round {number}: training on {len(crew.hosts)} hosts")
            async with crew.lasting():
                account = await _round(crew, bundle, tree, train, job, out, options, start, watch)
            remember_failures(out, job, account)
        history.append({"round": number, "job": job, **_summary(account)})
        if account.stopped:
            break
        start = average / ADAPTER
    account.command = "rounds"
    account.facts = {"name": name, "rounds": history, "average": str(start.parent if start else "")}
    return account


def _unwanted(out: Path, job: str, host: str) -> int | None:
    """The attempt that gave a refused adapter, which is not asked for again."""
    refused = out / job / REFUSED
    record = host_folder(out, job, host) / RECORD
    if not refused.is_file() or not record.is_file() or host not in read_json(refused):
        return None
    return int(read_json(record)["attempts"])


def _finished(average: Path, crew: Crew, *, last: bool) -> bool:
    """Whether a round stands: the last one is opened again for hosts that are not in it yet."""
    if not (average / ADAPTER).is_file():
        return False
    return not last or {host.name for host in crew.hosts} <= set(
        read_json(average / "aggregate.json")["weights"]
    )


def _summary(account: Account) -> dict[str, Any]:
    errors = {r.host: r.error["message"] for r in account.results if r.error}
    return {"done": account.names("done", "unchanged"), "failed": errors}


def _remembered(average: Path, crew: Crew) -> Account:
    """The account of a round that was finished before."""
    record = read_json(average / "aggregate.json")
    results = []
    for host in crew.hosts:
        if host.name in record["weights"]:
            facts = {"weight": record["weights"][host.name]}
            results.append(HostResult(host.name, "unchanged", facts))
        else:
            why = record["refused"].get(host.name, "took no part in this finished round")
            results.append(failed(host.name, HostError(why, kind="integrity")))
    return Account("rounds", results)


async def _round(
    crew: Crew,
    bundle: Bundle,
    tree: Any,
    train: TrainOptions,
    job: str,
    out: Path,
    options: RoundOptions,
    start: Path | None,
    watch: Callable[[dict[str, Progress]], None],
) -> Account:
    results: dict[str, HostResult] = {}

    def carry_on(account: Account) -> Crew:
        results.update({r.host: r for r in account.results if r.state == "failed"})
        hosts = [host for host in crew.hosts if host.name not in results]
        return dataclasses.replace(crew, hosts=hosts)

    live = carry_on(await crew.each("push", lambda box: push(box, tree)))
    if start is not None:
        adapter = tree_of("adapter", start.parent, [ADAPTER, CARD])
        train = dataclasses.replace(train, adapter_digest=adapter.digest)
        live = carry_on(await live.each("push", lambda box: push(box, adapter)))
    jobs = {
        host.name: dataclasses.replace(
            train_job(host, train, job), supersede=_unwanted(out, job, host.name)
        )
        for host in live.hosts
    }
    if jobs:
        live = carry_on(
            await wait(
                live,
                jobs,
                poll_seconds=options.poll_seconds,
                patience_seconds=options.patience_seconds,
                watch=watch,
            )
        )
        manifest = bundle.manifest
        live = carry_on(await live.each("pull", lambda box: pull(box, job, out, manifest=manifest)))
    names = [host.name for host in live.hosts]
    minimum = max(1, math.ceil(options.quorum * len(crew.hosts)))
    try:
        if len(names) < minimum:
            raise TooFew(f"{len(names)} adapters came", AggregateResult(options.method))
        account = aggregate_job(out, job, names, options, bundle, start=start, minimum=minimum)
    except TooFew as few:
        return _stopped(job, crew, results, minimum, few.result.refused)
    for result in account.results:
        results[result.host] = result
    return Account("rounds", [results[host.name] for host in crew.hosts])


def _stopped(
    job: str,
    crew: Crew,
    results: dict[str, HostResult],
    minimum: int,
    refused: dict[str, str],
) -> Account:
    """The account of a round that has too few adapters to count; those trained are kept."""
    for name, why in refused.items():
        error = HostError(f"adapter refused: {why}", kind="integrity", where=name)
        results[name] = failed(name, error)
    for host in crew.hosts:
        results.setdefault(host.name, HostResult(host.name, "done", {"job": job}))
    there = sum(result.state == "done" for result in results.values())
    stopped = f"{there} of {len(crew.hosts)} hosts have an adapter, {minimum} are needed for {job}"
    ordered = [results[host.name] for host in crew.hosts]
    return Account("rounds", ordered, stopped=stopped)
