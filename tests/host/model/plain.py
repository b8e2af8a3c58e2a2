"""A rung of the ladder in plain numpy, one sample after the other: what modules are held against.

Nothing here comes from the package: only its numbers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Any]


def arrays(module: Any) -> dict[str, Array]:
    """Parameters and buffers of a torch module, float64, and its `width` and `heads` if any."""
    found = {k: v.detach().numpy().astype(np.float64) for k, v in module.state_dict().items()}
    found |= {k: getattr(module, k) for k in ("width", "heads") if hasattr(module, k)}
    return found


def normed(rows: Array) -> Array:
    """Layer norm without affine part over the last axis."""
    centred = rows - rows.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5))


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def silu(values: Array) -> Array:
    return values / (1 + np.exp(-values))


def attention(w: Weights, rows: Array, seen: Array) -> Array:
    """Multi-head attention of rows (T, d) over (M, d), with its output projection: (T, d)."""
    width, heads = w["width"], w["heads"]
    query = rows @ w["query"] + w["query_bias"]
    key, value = seen @ w["key_value"][:, :width], seen @ w["key_value"][:, width:]
    mixed = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        mixed[:, part] = softmax(query[:, part] @ key[:, part].T) @ value[:, part]
    return np.asarray(mixed @ w["out"] + w["out_bias"])


def rung(
    w: Weights,
    state: Array,
    *,
    seen: Array | None = None,
    join: Callable[[Array, Array, Array], Array] = lambda state, read, given: state + given,
    beside: Callable[[Array], Array | float] = lambda inner: 0.0,
) -> Array:
    """One sample's tokens (T, d) through a rung.

    Args:
        w: the rung's `arrays`.
        state: after the gate.
        seen: further rows (m, d) that attention reads.
        join: the state after attention, from state, what attention read and what it gave.
        beside: what is added to the feed-forward layer that reads `inner`.
    """
    read = normed(state)
    given = attention(w, read, read if seen is None else np.concatenate([read, seen]))
    state = join(state, read, given)
    inner = normed(state)
    hidden = silu(inner @ w["up"] + w["up_bias"])
    return np.asarray(state + hidden @ w["down"] + w["down_bias"] + beside(inner))
