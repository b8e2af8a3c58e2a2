"""Folders to boxes by content: only what is missing, resumed where it broke, switched at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeladder.core.adapter_record import RECORD
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import sha256_file
from edgeladder.core.ownership import MANIFEST, SIGNATURE
from edgeladder.core.signature import SUFFIX
from edgeladder.core.sizes import format_size
from edgeladder.fleet.box.records import (
    AssembleAnswer,
    AssembleRequest,
    BlobPart,
    HaveAnswer,
    HaveRequest,
    PruneAnswer,
    PruneRequest,
    ReceiveAnswer,
    ReceiveRequest,
)
from edgeladder.fleet.outcomes import HostError, HostResult
from edgeladder.fleet.transport import BLOCK_BYTES, Box
from edgeladder.runtime.adapter import WEIGHTS, waiting_weights

Kind = Literal["bundle", "data", "wheelhouse", "adapter"]
SPARE_BYTES = 4 << 20  # left free on the box beyond what is sent


@dataclass(frozen=True)
class Tree:
    """A local folder as it is to stand on the boxes.

    `digest` names it there: a bundle's `bundle_address`, else the hash of its names and hashes.
    """

    kind: Kind
    digest: str
    files: dict[str, str]  # name in the tree -> sha256
    sources: dict[str, tuple[Path, int]]  # sha256 -> local file and size

    @property
    def total_bytes(self) -> int:
        """Of distinct content."""
        return sum(size for _, size in self.sources.values())


def tree_of(
    kind: Kind,
    folder: Path,
    names: list[str] | None = None,
    elsewhere: Mapping[str, Path] | None = None,
) -> Tree:
    """Hash a folder's regular files (all below it, or those named).

    Args:
        kind: what the folder is.
        folder: where the files lie.
        names: which; None: all but hidden ones.
        elsewhere: where those lie that do not lie under their names.

    Raises:
        ConfigError: the folder is absent or empty.
    """
    if names is None and folder.is_dir():
        names = [
            path.relative_to(folder).as_posix()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        ]
    if not names:
        raise ConfigError(f"no {kind} here to push", where=str(folder), remedy="name its folder")
    files: dict[str, str] = {}
    sources: dict[str, tuple[Path, int]] = {}
    for name in names:
        path = (elsewhere or {}).get(name, folder / name)
        files[name] = sha256_file(path)
        sources[files[name]] = (path, path.stat().st_size)
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    return Tree(kind, digest, files, sources)


def bundle_tree(path: Path) -> Tree:
    """A bundle with exactly the files of its manifest and its signature, every one verified first.

    Raises:
        ConfigError: there is no bundle.
        IntegrityError: a file differs from the manifest, or no publisher who is pinned signed it.
    """
    bundle = Bundle.open(path, verify=True)
    files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    files[MANIFEST] = bundle.digest
    signature = bundle.path(SIGNATURE)
    if signature.is_file():
        files[SIGNATURE] = sha256_file(signature)
    sources = {
        sha: (bundle.path(name), bundle.path(name).stat().st_size) for name, sha in files.items()
    }
    return Tree("bundle", bundle_address(bundle), files, sources)


def bundle_address(bundle: Bundle) -> str:
    """What a bundle is called on boxes: its digest, and where it is signed its signature's too.

    So that a bundle that is signed anew takes the place of the one before.
    """
    signature = bundle.path(SIGNATURE)
    if not signature.is_file():
        return bundle.digest
    return hashlib.sha256(f"{bundle.digest} {sha256_file(signature)}".encode()).hexdigest()


def adapter_tree(folder: Path) -> Tree:
    """An adapter: weights, record and, where there is one, its signature.

    Raises:
        ConfigError: there is no adapter.
    """
    names = [path for path in (WEIGHTS, RECORD) if (folder / path).is_file()]
    signed = [f"{RECORD}{SUFFIX}"] if (folder / f"{RECORD}{SUFFIX}").is_file() else []
    waiting = waiting_weights(folder)
    return tree_of("adapter", folder, names + signed, {WEIGHTS: waiting} if waiting else {})


@dataclass(frozen=True)
class Pushed:
    """What one push, or several of one box together, moved."""

    changed: bool = False
    sent_bytes: int = 0
    resumed_bytes: int = 0  # of what was sent, there from a broken connection
    kept_bytes: int = 0
    damaged: int = 0  # files that the box held with other content

    def __add__(self, other: Pushed) -> Pushed:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        changed, *sums = (mine + theirs for mine, theirs in pairs)
        return Pushed(bool(changed), *sums)

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "changed"}


async def push(box: Box, tree: Tree, *, verify: bool = False, switch: bool = True) -> HostResult:
    """Bring a tree to one box.

    Args:
        verify: hash again what the box already has, and replace what is damaged.
        switch: make it the box's current one of its kind.

    Returns:
        `unchanged` when the box had it all and used it already, else `done`; with the bytes sent,
        kept and resumed.

    Raises:
        HostError: the connection broke (a next call goes on from there), the disk is full, or
            content arrived damaged twice.
    """
    pushed = await _push(box, tree, verify=verify, switch=switch)
    facts: dict[str, object] = {"digest": tree.digest, **pushed.facts()}
    return HostResult(box.host.name, "done" if pushed.changed else "unchanged", facts)


async def _push(box: Box, tree: Tree, *, verify: bool, switch: bool) -> Pushed:
    sizes = {sha: size for sha, (_, size) in tree.sources.items()}
    ask = HaveRequest(tree.kind, tree.digest, sizes, verify)
    sent = resumed = damaged = 0
    for again in (False, True):
        there = await box.call(ask, HaveAnswer, timeout_seconds=600 if verify else None)
        damaged += len(there.damaged)
        missing = {sha: offset for sha, offset in there.missing.items() if sha in sizes}
        if not all(0 <= offset <= sizes[sha] for sha, offset in missing.items()):
            raise HostError(
                "the box says that it holds more of a file than there is",
                kind="integrity",
                where=box.host.name,
            )
        if not missing:
            break
        _check_space(sizes, missing, there.free_bytes)
        first = sorted(missing.items(), key=lambda item: -item[1])  # what has begun
        wanted = tuple(BlobPart(sha, sizes[sha], offset) for sha, offset in first)
        before = box.sent_bytes
        answer = await box.call(
            ReceiveRequest(wanted), ReceiveAnswer, payload=_blocks(tree, wanted)
        )
        sent += box.sent_bytes - before
        resumed += sum(missing.values())
        if not answer.rejected:
            break
        if again:
            raise HostError(
                f"{len(answer.rejected)} files arrived damaged twice",
                kind="integrity",
                where=box.host.name,
                remedy="check the box's storage and memory",
            )
    place = AssembleRequest(tree.kind, tree.digest, tree.files, switch)
    placed = await box.call(place, AssembleAnswer)
    changed = placed.built or placed.switched or bool(sent or damaged)
    return Pushed(changed, sent, resumed, tree.total_bytes - sent - resumed, damaged)


def _check_space(sizes: dict[str, int], missing: dict[str, int], free_bytes: int) -> None:
    needed = sum(sizes[sha] - offset for sha, offset in missing.items()) + SPARE_BYTES
    if needed > free_bytes:
        raise HostError(
            f"the box's disk is full: {format_size(needed)} needed, {format_size(free_bytes)} free",
            kind="disk",
            remedy="free some space on the box, or `edgeladder fleet push --prune`",
        )


async def _blocks(tree: Tree, wanted: tuple[BlobPart, ...]) -> AsyncIterator[bytes]:
    """The missing bytes of the wanted blobs, in order, read as they go."""
    for part in wanted:
        path, size = tree.sources[part.sha256]
        left = size - part.offset
        with open(path, "rb") as stream:
            stream.seek(part.offset, os.SEEK_SET)
            while left:
                block = stream.read(min(left, BLOCK_BYTES))
                if not block:
                    raise IntegrityError(
                        "a file shrank while it was being pushed",
                        where=str(path),
                        remedy="push again when nothing writes to the folder",
                    )
                left -= len(block)
                yield block


async def push_all(
    box: Box, trees: list[Tree], *, verify: bool = False, prune: bool = False
) -> HostResult:
    """Push several trees to one box, and then remove what is no longer in use if asked.

    Raises:
        HostError: as `push`.
    """
    total = Pushed()
    for tree in trees:
        total += await _push(box, tree, verify=verify, switch=True)
    facts: dict[str, object] = {"digests": {tree.kind: tree.digest for tree in trees}}
    facts.update(total.facts())
    if prune:
        facts.update(dataclasses.asdict(await box.call(PruneRequest(), PruneAnswer)))
    return HostResult(box.host.name, "done" if total.changed else "unchanged", facts)
