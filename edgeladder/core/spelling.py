"""What somebody may have meant by a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ALSO = {  # what other trainers call it -> our key
    "bs": "batch",
    "batch_size": "batch",
    "dim": "width",
    "ema": "average",
    "grad_clip": "clip",
    "kd": "anchor",
    "momentum": "beta1",
    "num_epochs": "epochs",
    "rank": "width",
}


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The closest of `names` to a misspelt `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return matches[0] if matches else None


def meant(key: str, keys: Iterable[str], *, most: int = 3) -> list[str]:
    """Dotted keys that a wrong `a.b` names in other words, best first; typos are `nearest`'s.

    Looked for in turn: the same key in another section, another trainer's word for it (`bs`),
    initials (`lr`), a word within a key (`rate`, `decay`). Keys of the section that was named come
    before others.
    """
    section, _, last = key.rpartition(".")
    last = last.lower().replace("-", "_")
    known = sorted(keys, key=lambda item: item.rpartition(".")[0] != section)
    leaves = {item: item.rpartition(".")[2] for item in known}
    found = [item for item, leaf in leaves.items() if leaf == _ALSO.get(last, last)]
    found += [item for item, leaf in leaves.items() if _initials(leaf) == last]
    found += [item for item, leaf in leaves.items() if last in leaf.split("_")]
    return list(dict.fromkeys(found))[:most]


def _initials(words: str) -> str:
    """`lr` of `learning_rate`; nothing of a single word."""
    parts = words.split("_")
    return "".join(part[:1] for part in parts) if len(parts) > 1 else ""
