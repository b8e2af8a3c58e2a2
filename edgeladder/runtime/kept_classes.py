"""Class embeddings of runs asked before: a command that classifies one picture needs no text tower.

They depend on the adapter, the bundle and the classes' prompts alone, so files in the user's cache
are named by the three; a file is used only whole. Some last ones are kept. Nothing is kept for a
machine that pins publishers' keys: what answers there is signed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core import disk
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.tensors import TensorFile, is_intact, write_tensors
from edgeladder.core.trusted_keys import pinned_keys
from edgeladder.core.user_cache import user_cache
from edgeladder.runtime.logits import ClassEmbeddings

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.adapter import Adapter

_VERSION = 1  # of how they are made
_MOST_BYTES = 16_000_000  # of a file
_MOST_FILES = 16
_ZERO_SHOT, _TUNED = "zero_shot", "tuned"


def kept_classes_path(
    bundle: Bundle, adapter: Adapter, prompts: Sequence[Sequence[str]]
) -> Path | None:
    """Where a run's class embeddings would be; None where none may be kept."""
    digest = adapter.record.sha256
    if not digest or pinned_keys():
        return None
    told = json.dumps([_VERSION, digest, bundle.digest, [list(texts) for texts in prompts]])
    return user_cache() / "classes" / f"{hashlib.sha256(told.encode()).hexdigest()}.safetensors"


def kept_classes(path: Path | None) -> ClassEmbeddings | None:
    """What was kept; None where nothing was, or not whole any more."""
    if path is None or not path.is_file():
        return None
    try:
        if not is_intact(path):
            return None
        stored = TensorFile(path)
        found = ClassEmbeddings(stored[_ZERO_SHOT], stored[_TUNED])
    except (EdgeLadderError, OSError, KeyError):
        return None
    with contextlib.suppress(OSError):
        path.touch()  # the ones not used for longest go first
    return found


def keep_classes(path: Path | None, embeddings: ClassEmbeddings) -> None:
    """Keep them for the next time; that it cannot be done is no error."""
    arrays = {_ZERO_SHOT: embeddings.zero_shot[:], _TUNED: embeddings.tuned}
    if path is None or sum(array.nbytes for array in arrays.values()) > _MOST_BYTES:
        return
    with contextlib.suppress(OSError, EdgeLadderError):
        disk.make_folders(path.parent)
        write_tensors(path, arrays)
        known = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for file in known[:-_MOST_FILES]:
            disk.unlink(file)
