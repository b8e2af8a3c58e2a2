"""One rung with its prompts, every parameter random: what the tests of prompt methods compare."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch

from edgeladder.core.config import LadderConfig
from edgeladder.core.records import from_json
from edgeladder.host.model.prompts import build_prompts
from edgeladder.host.model.rung import Rung
from tests.host.model.plain import Array, arrays

WIDTH, HEADS, LENGTH, RUNGS, INDEX = 8, 2, 3, 2, 1
TOKENS, COUNTS = (3, 2), (4, 5)  # of both sides: tokens of a sample, samples
ROWS = [t * n for t, n in zip(TOKENS, COUNTS, strict=True)]
DROPPED = 2  # the prompt of rung INDEX that `scene(..., condensed=True)` drops

# one sample's tokens (T, d), the side (0 image, 1 text), the sample -> (T, d)
Plain = Callable[[Array, int, int], Array]


def scene(kind: str, *, condensed: bool = False, **prompts: object) -> SimpleNamespace:
    """A rung and its prompts, in float64.

    `method`, `rung`, `given` (rung INDEX's prompts), `state` (R, d), and in numpy `w` (the rung's),
    `p` (the method's) and `pictures`, the projected taps, (T, N, d) each.
    """
    torch.manual_seed(3)
    values = {"kind": kind, "length": LENGTH, "keep": 0.5 if condensed else None, **prompts}
    config = from_json(LadderConfig, {"width": WIDTH, "heads": HEADS, "prompts": values})
    method, rung = build_prompts(config, RUNGS).double(), Rung(config, fused=False).double()
    with torch.no_grad():
        for name, parameter in [*method.named_parameters(), *rung.named_parameters()]:
            parameter.normal_(0.0, 0.5 / method.size if name.endswith("tokens") else 0.5)
        if condensed:
            method.mask[INDEX, DROPPED] = 0.0
    state = torch.randn(sum(ROWS), WIDTH, dtype=torch.float64)
    taps = [torch.randn(ROWS[0], WIDTH, dtype=torch.float64) for _ in range(RUNGS)]
    given = method.prepare(taps, TOKENS[0]).of(INDEX)
    pictures = [tap.reshape(TOKENS[0], -1, WIDTH).numpy() for tap in taps]
    return SimpleNamespace(
        **{"method": method, "rung": rung, "given": given, "state": state, "taps": taps},
        **{"w": arrays(rung), "p": arrays(method), "pictures": pictures},
    )


def climbed(it: SimpleNamespace) -> Array:
    """The rung's output (R, d) for `it.state` as its taps."""
    found = it.rung(None, it.state, TOKENS, COUNTS, it.given)
    return np.asarray(found.detach().numpy())


def each_sample(it: SimpleNamespace, plain: Plain) -> Array:
    """`plain` of every sample of both sides: (R, d)."""
    out, start = [], 0
    for side, (tokens, count) in enumerate(zip(TOKENS, COUNTS, strict=True)):
        rows = it.state.numpy()[start : start + tokens * count].reshape(tokens, count, WIDTH)
        start += tokens * count
        found = [plain(rows[:, n], side, n) for n in range(count)]
        out.append(np.stack(found, axis=1).reshape(-1, WIDTH))
    return np.concatenate(out)


def prompts_of(it: SimpleNamespace, side: int, condensed: bool, size: float) -> Array:
    """(m, d): rung INDEX's kept prompts of a side as they act, image prompts coupled to text's."""
    tokens = it.p["tokens"][INDEX] * size
    if side == 0:
        tokens = tokens + tokens @ it.p["couple"][INDEX]
    return np.asarray(tokens[kept(condensed)])


def kept(condensed: bool) -> list[int]:
    """Places of the prompts that condensation kept."""
    return [k for k in range(LENGTH) if not (condensed and k == DROPPED)]
