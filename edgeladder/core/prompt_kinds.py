"""The kinds of prompts that a profile may name, and what each of them combines with.

One row a kind. The module that a row stands for is a class of the same name in
`edgeladder/host/model/prompts/`, which refuses to be registered without its row; a test holds that
rows and classes are the same set. The row is all that a device must know of a kind: which of a
ladder's tensors are prompts travels in the bundle (`PromptTensors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["none", "token", "cross", "diffusion", "memory"]


@dataclass(frozen=True)
class PromptKind:
    """What a kind of prompts combines with."""

    quantize: bool = True  # `bits`: values may be stored as indices into a codebook
    condense: bool = True  # `keep`: single prompts may be left out by a mask
    dropout: bool = True  # `dropout`: a training step may leave values out
    own_attention: bool = False  # `cross_weights`: may have attention weights of its own
    # `initialize`: prompts may begin as tokens that enter the rung. `rows`: as the layer norm makes
    # them that the rung's attention reads; `directions`: of the tokens as they are; both at the
    # size they were given at export; None: they may not
    prototypes: Literal["rows", "directions"] | None = "rows"


KINDS: Mapping[str, PromptKind] = {
    "none": PromptKind(quantize=False, condense=False, dropout=False, prototypes=None),
    "token": PromptKind(),
    "cross": PromptKind(own_attention=True),
    "diffusion": PromptKind(prototypes="directions"),
    "memory": PromptKind(dropout=False, prototypes="directions"),
}


def refused(
    kind: str,
    *,
    bits: int | None = None,
    keep: float | None = None,
    initialize: str = "random",
    dropout: float | None = None,
    cross_weights: str = "shared",
) -> str | None:
    """Why a kind cannot be combined with these settings of a profile; None where it can."""
    row = KINDS[kind]
    if dropout is not None and not row.dropout:
        return f"dropout given, but kind {kind} has no prompts whose values could be left out"
    if cross_weights != "shared" and not row.own_attention:
        return f"cross_weights {cross_weights} given, but kind {kind} has no cross-attention"
    lacking = {
        "bits": "quantize" * (not row.quantize),
        "keep": "condense" * (not row.condense),
        "initialize": "initialize" * (row.prototypes is None),
    }
    asked = {"bits": bits is not None, "keep": keep is not None}
    asked["initialize"] = initialize != "random"
    given = [name for name, wanted in asked.items() if wanted and lacking[name]]
    if not given:
        return None
    *first, last = filter(None, lacking.values())
    verbs = f"{', '.join(first)} or {last}" if first else last
    return f"{' and '.join(given)} given, but kind {kind} has no prompts to {verbs}"
