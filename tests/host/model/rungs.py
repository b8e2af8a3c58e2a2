"""One rung with its prompts, every parameter random: what the tests of prompt methods compare."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.core.records import from_json
from edgeladder.host.model.prompts import build_prompts
from edgeladder.host.model.rung import Rung

Act = Callable[[Tensor, Tensor], Tensor]

WIDTH, HEADS, LENGTH, RUNGS, INDEX = 8, 2, 3, 2, 1
TOKENS, COUNTS = (3, 2), (4, 5)  # of both sides: tokens of a sample, samples
ROWS = [t * n for t, n in zip(TOKENS, COUNTS, strict=True)]
DROPPED = 2  # the prompt of rung INDEX that `scene(..., condensed=True)` drops


def scene(kind: str, *, condensed: bool = False, **prompts: object) -> SimpleNamespace:
    """`method`, `rung`, `given` (rung INDEX's prompts) and `state` (R, d), all in float64."""
    torch.manual_seed(3)
    values = {"kind": kind, "length": LENGTH, "keep": 0.5 if condensed else None, **prompts}
    config = from_json(LadderConfig, {"width": WIDTH, "heads": HEADS, "prompts": values})
    method, rung = build_prompts(config, RUNGS).double(), Rung(config, fused=False).double()
    with torch.no_grad():
        for parameter in [*method.parameters(), *rung.parameters()]:
            parameter.normal_(0.0, 0.5)
        if condensed:
            method.mask[INDEX, DROPPED] = 0.0
    state = torch.randn(sum(ROWS), WIDTH, dtype=torch.float64)
    given = method.prepare().of(INDEX)
    return SimpleNamespace(method=method, rung=rung, given=given, state=state)


def climbed(it: SimpleNamespace) -> Tensor:
    """The rung's output (R, d) for `it.state` as its taps."""
    found: Tensor = it.rung(None, it.state, TOKENS, COUNTS, it.given)
    return found


def norm(rows: Tensor) -> Tensor:
    """Layer norm without affine part."""
    return functional.layer_norm(rows, rows.shape[-1:], eps=1e-5)


def sides(rows: Tensor) -> list[Tensor]:
    """Rows (R, d) as (T, N, d) of pictures and of classes."""
    return [
        piece.reshape(t, n, -1)
        for piece, t, n in zip(rows.split(ROWS), TOKENS, COUNTS, strict=True)
    ]


def attend(rung: Rung, query_rows: Tensor, rows: Tensor) -> Tensor:
    """Multi-head attention of rows (T, d) over normed rows (M, d), one head after the other."""
    inner = WIDTH // HEADS
    query = query_rows @ rung.query + rung.query_bias
    key, value = (rows @ rung.key_value).split(WIDTH, -1)
    mixed = [
        torch.softmax(query[:, h] @ key[:, h].T, -1) @ value[:, h]
        for h in (slice(k * inner, (k + 1) * inner) for k in range(HEADS))
    ]
    return torch.cat(mixed, -1)


def attended(it: SimpleNamespace) -> Tensor:
    """The rung written out without prompts, up to where its feed-forward layer begins: (R, d)."""
    out = []
    for rows in sides(it.state):
        piece = rows.clone()
        for n in range(rows.shape[1]):
            own = norm(rows[:, n])
            piece[:, n] += attend(it.rung, own, own) @ it.rung.out
        out.append(piece.reshape(-1, WIDTH))
    return torch.cat(out)


def fed(it: SimpleNamespace, state: Tensor) -> Tensor:
    """The rung's feed-forward layer: (R, d) -> (R, d)."""
    hidden = norm(state) @ it.rung.up + it.rung.up_bias
    return state + functional.silu(hidden) @ it.rung.down


def kept(prompts: Tensor, condensed: bool) -> Tensor:
    """(m, d) without the dropped one."""
    return prompts[[k for k in range(LENGTH) if not (condensed and k == DROPPED)]]


def per_row(it: SimpleNamespace, state: Tensor, act: Act, condensed: bool) -> Tensor:
    """`act(row (d,), prompts (m, d))` of every normed row with its side's kept prompts: (R, d)."""
    out = []
    for rows, prompts in zip(norm(state).split(ROWS), it.given.tokens, strict=True):
        out += [act(row, kept(prompts, condensed)) for row in rows]
    return torch.stack(out)
