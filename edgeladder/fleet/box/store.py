"""Content-addressed files on the box: blobs by SHA-256, and trees of hard links to them.

ROOT/blobs/HASH[.part]        a file by its content; .part while it arrives
ROOT/trees/KIND/DIGEST/...    a whole folder (bundle, data, wheelhouse, adapter), complete
ROOT/KIND -> trees/KIND/DIGEST    the one in use, switched by one rename
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import tempfile
import time
from typing import TYPE_CHECKING

from edgeladder.fleet.box.records import (
    AssembleAnswer,
    AssembleRequest,
    HaveAnswer,
    HaveRequest,
    ReceiveAnswer,
    ReceiveRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

BLOCK_BYTES = 1 << 18
KINDS = ("bundle", "data", "wheelhouse", "adapter")


class Refused(Exception):
    """A request the box does not carry out; the controller shows it with its remedy."""

    def __init__(self, message: str, kind: str = "refused", remedy: str | None = None):
        super().__init__(message)
        self.kind = kind
        self.remedy = remedy


def blob_path(root: str, sha: str) -> str:
    """Where a blob lies; the name is checked, since it comes from outside."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha):
        raise Refused(f"not a SHA-256: {sha!r}")
    return os.path.join(root, "blobs", sha)


def tree_path(root: str, kind: str, digest: str) -> str:
    """Where a tree lies."""
    if kind not in KINDS or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise Refused(f"not a tree: {kind!r} {digest!r}")
    return os.path.join(root, "trees", kind, digest)


def hash_file(path: str) -> str:
    """Hex SHA-256 of a file, block by block."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


def fsync_folder(folder: str) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def have(root: str, request: HaveRequest) -> HaveAnswer:
    """Which of the wanted blobs are missing, and how much of each has already arrived.

    With `verify` every blob present is hashed again, and one that differs is removed first.
    """
    os.makedirs(os.path.join(root, "blobs"), exist_ok=True)
    tree = tree_path(root, request.kind, request.digest)
    damaged = []
    missing = {}
    present = os.path.isdir(tree) and not request.verify
    for sha, size in {} if present else request.blobs.items():
        path = blob_path(root, sha)
        whole = os.path.isfile(path) and os.path.getsize(path) == size
        if whole and request.verify and hash_file(path) != sha:
            damaged.append(sha)
            whole = False
        if not whole:
            if os.path.lexists(path):
                os.unlink(path)
            part = path + ".part"
            arrived = os.path.getsize(part) if os.path.isfile(part) else 0
            if arrived > size:
                os.unlink(part)
                arrived = 0
            missing[sha] = arrived
    if damaged:
        shutil.rmtree(tree, ignore_errors=True)  # its links lead to the damaged content
    return HaveAnswer(present, missing, tuple(damaged), shutil.disk_usage(root).free)


def receive(root: str, request: ReceiveRequest, stdin: BufferedReader) -> ReceiveAnswer:
    """Append what arrives to the parts; a part whose hash is right becomes a blob.

    The bytes of all `blobs` follow the request in order, each from its offset. What had arrived
    before a connection broke stays, so that the next call continues there.
    """
    with receiving(root):
        return _receive(root, request, stdin)


@contextlib.contextmanager
def receiving(root: str) -> Iterator[None]:
    """Be the only one who writes blobs; whoever still did is ended.

    The controller gives a silent box up and calls again, while its first call may go on here with
    what the line still held: both would append to one part, and the first even after the second
    had verified it.
    """
    with open(os.path.join(root, ".receiver"), "a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                lock.seek(0)
                holder = lock.read()
                if holder:  # else it holds the lock since just now and has not yet said who it is
                    with contextlib.suppress(OSError, ValueError):
                        os.kill(int(holder), signal.SIGKILL)
                time.sleep(0.02)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)  # before the lock goes: nobody shall end who takes this number next


def _receive(root: str, request: ReceiveRequest, stdin: BufferedReader) -> ReceiveAnswer:
    stored = []
    rejected = []
    for item in request.blobs:
        path = blob_path(root, item.sha256)
        part = path + ".part"
        digest = hashlib.sha256()
        with open(part, "ab+") as stream:
            stream.truncate(item.offset)
            stream.seek(0)
            for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
                digest.update(block)
            left = item.size - item.offset
            while left:
                block = stdin.read1(min(left, BLOCK_BYTES))
                if not block:
                    raise Refused("the connection ended", kind="lost")
                stream.write(block)
                stream.flush()  # so that a break loses nothing that arrived
                digest.update(block)
                left -= len(block)
            os.fsync(stream.fileno())
        if digest.hexdigest() == item.sha256:
            os.chmod(part, 0o444)
            os.replace(part, path)
            stored.append(item.sha256)
        else:
            os.unlink(part)
            rejected.append(item.sha256)
    fsync_folder(os.path.join(root, "blobs"))
    return ReceiveAnswer(tuple(stored), tuple(rejected))


def assemble(root: str, request: AssembleRequest) -> AssembleAnswer:
    """Build a tree from blobs beside its place, rename it there, and switch the link to it."""
    tree = tree_path(root, request.kind, request.digest)
    built = not os.path.isdir(tree)
    if built:
        os.makedirs(os.path.dirname(tree), exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".", dir=os.path.dirname(tree))
        try:
            for name, sha in request.files.items():
                target = os.path.normpath(os.path.join(temporary, name))
                if os.path.isabs(name) or not target.startswith(temporary + os.sep):
                    raise Refused(f"not a name inside the tree: {name!r}")
                os.makedirs(os.path.dirname(target), exist_ok=True)
                try:
                    os.link(blob_path(root, sha), target)
                except FileNotFoundError:
                    raise Refused(f"blob {sha} is missing", kind="lost") from None
                except OSError:  # no hard links on this file system (FAT, exFAT)
                    shutil.copyfile(blob_path(root, sha), target)
            os.chmod(temporary, 0o755)
            os.rename(temporary, tree)
            fsync_folder(os.path.dirname(tree))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return AssembleAnswer(built, request.switch and switch(root, request.kind, tree))


def switch(root: str, kind: str, tree: str) -> bool:
    """Point ROOT/KIND at `tree` by one rename; True when that changed anything."""
    link = os.path.join(root, kind)
    target = os.path.relpath(tree, root)
    if os.path.islink(link):
        if os.readlink(link) == target:
            return False
    elif os.path.lexists(link):
        raise Refused(
            f"{link} is there and is no link of edgeladder's",
            remedy="move it away, or name another folder as `root` in the inventory",
        )
    temporary = f"{link}.{os.getpid()}.tmp"
    os.symlink(target, temporary)
    os.replace(temporary, link)
    fsync_folder(root)
    return True
