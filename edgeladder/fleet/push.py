"""Folders to boxes by content: only what is missing, resumed where it broke, switched at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import sha256_file
from edgeladder.core.ownership import MANIFEST
from edgeladder.core.sizes import format_size
from edgeladder.fleet.account import HostError, HostResult
from edgeladder.fleet.transport import BLOCK_BYTES, Box

Kind = Literal["bundle", "data", "wheelhouse", "adapter"]
SPARE_BYTES = 4 << 20  # left free on the box beyond what is sent


@dataclass(frozen=True)
class Tree:
    """A local folder as it is to stand on the boxes.

    `digest` names it there: a bundle's own digest, else the hash of its names and hashes.
    """

    kind: Kind
    digest: str
    files: dict[str, str]  # name in the tree -> sha256
    sources: dict[str, tuple[Path, int]]  # sha256 -> local file and size

    @property
    def total_bytes(self) -> int:
        """Of distinct content."""
        return sum(size for _, size in self.sources.values())


def tree_of(kind: Kind, folder: Path, names: list[str] | None = None) -> Tree:
    """Hash a folder's regular files (all below it, or those named).

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
        path = folder / name
        files[name] = sha256_file(path)
        sources[files[name]] = (path, path.stat().st_size)
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    return Tree(kind, digest, files, sources)


def bundle_tree(path: Path) -> Tree:
    """A bundle with exactly the files of its manifest, every one verified first.

    Raises:
        ConfigError: there is no bundle.
        IntegrityError: a file differs from the manifest.
    """
    bundle = Bundle.open(path, verify=True)
    files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    files[MANIFEST] = bundle.digest
    sources = {
        sha: (bundle.path(name), bundle.path(name).stat().st_size) for name, sha in files.items()
    }
    return Tree("bundle", bundle.digest, files, sources)


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
    facts: dict[str, Any] = {"digest": tree.digest, "sent_bytes": 0, "resumed_bytes": 0}
    sizes = {sha: size for sha, (_, size) in tree.sources.items()}
    for again in (False, True):
        there = await box.call(
            "have",
            kind=tree.kind,
            digest=tree.digest,
            blobs=sizes,
            verify=verify,
            timeout_seconds=600 if verify else None,
        )
        facts["damaged"] = len(there["damaged"]) + facts.get("damaged", 0)
        missing = {sha: int(offset) for sha, offset in there["missing"].items() if sha in sizes}
        if not missing:
            break
        _check_space(sizes, missing, there["free_bytes"])
        wanted = [
            {"sha256": sha, "size": sizes[sha], "offset": offset}
            for sha, offset in sorted(missing.items(), key=lambda item: -item[1])
        ]
        before = box.sent_bytes
        answer = await box.call(
            "receive", blobs=wanted, payload=_blocks(tree, missing, wanted), timeout_seconds=None
        )
        facts["sent_bytes"] += box.sent_bytes - before
        facts["resumed_bytes"] += sum(missing.values())
        if not answer["rejected"]:
            break
        if again:
            raise HostError(
                f"{len(answer['rejected'])} files arrived damaged twice",
                kind="integrity",
                where=box.host.name,
                remedy="check the box's storage and memory",
            )
    facts["kept_bytes"] = tree.total_bytes - facts["sent_bytes"] - facts["resumed_bytes"]
    placed = await box.call(
        "assemble", kind=tree.kind, digest=tree.digest, files=tree.files, switch=switch
    )
    changed = placed["built"] or placed["switched"] or facts["sent_bytes"] or facts["damaged"]
    return HostResult(box.host.name, "done" if changed else "unchanged", facts)


def _check_space(sizes: dict[str, int], missing: dict[str, int], free_bytes: int) -> None:
    needed = sum(sizes[sha] - offset for sha, offset in missing.items()) + SPARE_BYTES
    if needed > free_bytes:
        raise HostError(
            f"the box's disk is full: {format_size(needed)} needed, {format_size(free_bytes)} free",
            kind="disk",
            remedy="free some space on the box, or `edgeladder fleet push --prune`",
        )


async def _blocks(
    tree: Tree, missing: dict[str, int], wanted: list[dict[str, Any]]
) -> AsyncIterator[bytes]:
    """The missing bytes of the wanted blobs, in order, read as they go."""
    for item in wanted:
        path, size = tree.sources[item["sha256"]]
        left = size - item["offset"]
        with open(path, "rb") as stream:
            stream.seek(item["offset"], os.SEEK_SET)
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
    total = HostResult(box.host.name, "unchanged", {"digests": {}})
    for tree in trees:
        result = await push(box, tree, verify=verify)
        total.state = "done" if result.state == "done" else total.state
        total.facts["digests"][tree.kind] = tree.digest
        for name in ("sent_bytes", "resumed_bytes", "kept_bytes", "damaged"):
            total.facts[name] = total.facts.get(name, 0) + result.facts.get(name, 0)
    if prune:
        total.facts.update(await box.call("prune"))
    return total
