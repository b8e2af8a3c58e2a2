"""Make room on the box: trees that nothing uses, and the blobs that only they held."""

from __future__ import annotations

import os
import shutil

from edgeladder.fleet.box.jobs import job_folder, read_text, state
from edgeladder.fleet.box.records import PruneAnswer, PruneRequest
from edgeladder.fleet.box.store import KINDS


def prune(root: str, request: PruneRequest) -> PruneAnswer:
    """Remove trees that are neither current nor a running job's; what is half pushed stays."""
    removed = []
    freed = 0
    commands = _running_commands(root)
    for kind in KINDS:
        folder = os.path.join(root, "trees", kind)
        current = os.path.realpath(os.path.join(root, kind))
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            if os.path.realpath(path) != current and name not in commands:
                shutil.rmtree(path)
                removed.append(f"{kind}/{name[:12]}")
    blobs = os.path.join(root, "blobs")
    for name in os.listdir(blobs) if os.path.isdir(blobs) else []:
        path = os.path.join(blobs, name)
        if not name.endswith(".part") and os.stat(path).st_nlink == 1:
            freed += os.path.getsize(path)
            os.unlink(path)
    return PruneAnswer(tuple(removed), freed)


def _running_commands(root: str) -> str:
    """The records of all running jobs: a tree whose digest stands in one is in use."""
    folder = os.path.join(root, "jobs")
    texts = []
    for job in os.listdir(folder) if os.path.isdir(folder) else []:
        if state(root, job).state == "running":
            texts.append(read_text(os.path.join(job_folder(root, job), "job.json")))
    return "\n".join(texts)
