"""What all prompts share: their tensors, coupling, quantization, masks, and the places they act at.

A kind of prompts is a subclass that registers itself and overrides one of three methods:

    attended             further keys and values of the rung's self-attention
    after_attention      joins what self-attention gave to the state, before the feed-forward layer
    beside_feed_forward  added to what the feed-forward layer gives

Prompts enter a rung after its layer norms, which would undo their mean and size: what a codebook
holds of them (QPrompt) acts. They are drawn, and kept, with deviation 0.02 and act `size` times as
large, so that under AdamW, whose steps do not depend on a parameter's size, prompts that meet rows
of deviation 1 move in proportion to theirs, wherever they began (SPT).

Names of parameters, and the order in which they are drawn, are part of a bundle: a subclass adds
its own after those of its base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.core.prompt_kinds import KINDS
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.host.model.prompts.quantize import normal_codebook, quantize

DEVIATION = 0.02  # of the stored tokens at the start
_MASKED = -1e9  # added to a dropped prompt's attention score
_NAME = "prompts"  # of the module inside the ladder


class RungWeights(Protocol):
    """The weights of a rung's attention that prompts may use, (d, d) but where said."""

    width: int
    heads: int
    query: nn.Parameter
    query_bias: nn.Parameter  # (d,)
    key_value: nn.Parameter  # (d, 2 d)
    out: nn.Parameter
    out_bias: nn.Parameter  # (d,)


@dataclass(frozen=True)
class Attention:
    """A rung's self-attention: rows (R, d) of all of its sides."""

    state: Tensor  # before it
    read: Tensor  # the state's layer norm, what it read
    given: Tensor  # what it gave, after its output projection

    def added(self) -> Tensor:
        """The state after it, (R, d)."""
        return self.state + self.given


@dataclass(frozen=True)
class RungPrompts:
    """The prepared prompts of one rung, for the sides whose rows it works on."""

    method: PromptMethod
    tokens: tuple[Tensor, ...]  # (k, d) per side; empty where there are none
    index: int  # of the rung
    values: tuple[Tensor, ...] = ()  # where `tokens` are but the keys: what they stand for
    which: int = 0  # the first of its sides: 0 image, 1 text
    rows: Tensor | None = None  # (k,) int64: which of the rung's m prompts they are; None: all

    def attended(self) -> Sequence[Tensor]:
        """Further rows that the rung's self-attention reads, (k, d) per side or nothing."""
        return self.method.attended(self)

    def after_attention(self, rung: RungWeights, it: Attention, sides: Sequence[int]) -> Tensor:
        """The state (R, d) between attention and feed-forward; `sides`: rows of each side."""
        return self.method.after_attention(self, rung, it, sides)

    def beside_feed_forward(self, inner: Tensor, fed: Tensor, sides: Sequence[int]) -> Tensor:
        """The state (R, d) after the feed-forward layer that read `inner` (R, d) and gave `fed`."""
        return self.method.beside_feed_forward(self, inner, fed, sides)

    def per_side(self, rows: Tensor, sides: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Each side's rows (R_s, d) with its prompts (k, d)."""
        return list(zip(split(rows, sides), self.tokens, strict=True))

    @property
    def condensed(self) -> bool:
        """Whether single prompts may be left out."""
        return self.method.condensed

    def mask(self) -> Tensor:
        """(1, k): 1 but for the one row that stands in a rung which keeps none."""
        mask = self.method.mask[self.index : self.index + 1]
        return mask if self.rows is None else mask.index_select(1, self.rows)

    def bias(self) -> Tensor:
        """(1, k), to add to attention scores: 0 for kept prompts, very negative for others."""
        return (1.0 - self.mask()) * _MASKED

    def masked(self, scores: Tensor) -> Tensor:
        """Scores (..., k) with condensed prompts at zero."""
        return scores * self.mask() if self.condensed else scores


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts of all rungs as a forward pass uses them: quantized and coupled."""

    method: PromptMethod
    tokens: tuple[tuple[Tensor, ...], ...]  # per side (image, text), per rung: (k, d)
    values: tuple[tuple[Tensor, ...], ...] = ()  # likewise, where `tokens` are but the keys
    which: int = 0  # the first of its sides
    rows: tuple[Tensor, ...] = ()  # per rung: which of its m prompts they are; empty: all

    def only(self, rows: Sequence[Tensor]) -> PreparedPrompts:
        """Those at the given places alone, so that a rung computes with no more.

        Args:
            rows: per rung (k,) int64, as `PromptMethod.kept` gives them; empty: all.
        """
        if not rows:
            return self
        tokens, values = (
            tuple(
                tuple(p.index_select(0, kept) for p, kept in zip(side, rows, strict=True))
                for side in sides
            )
            for sides in (self.tokens, self.values)
        )
        return replace(self, tokens=tokens, values=values, rows=tuple(rows))

    def side(self, which: int) -> PreparedPrompts:
        """Those of one side alone."""
        values = (self.values[which],) if self.values else ()
        return replace(self, tokens=(self.tokens[which],), values=values, which=which)

    def of(self, index: int) -> RungPrompts:
        """Those of one rung."""
        tokens, values = (
            tuple(side[index] for side in sides if side) for sides in (self.tokens, self.values)
        )
        rows = self.rows[index] if self.rows else None
        return RungPrompts(self.method, tokens, index, values, self.which, rows)


class PromptMethod(nn.Module):
    """Learnable tokens (L, m, d) per rung, image prompts coupled to text prompts."""

    kind: ClassVar[str]
    size: ClassVar[float] = 1.0  # the stored tokens act so many times as large
    of_pictures: ClassVar[bool] = True  # pictures have tokens, of their own or the texts' coupled
    by_place: ClassVar[tuple[str, ...]] = ()  # own parameters (m, d) that all rungs share
    undecayed: ClassVar[tuple[str, ...]] = ()  # own parameters that weight decay leaves alone

    mask: Tensor  # (L, m)
    dropout: Tensor  # (2, L, m, d): image, text
    codebook: Tensor  # (2^bits,)
    live: Tensor  # (1,)
    statistics: Tensor  # (sets, 2, L, 1, 1)

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__()
        prompts, width = config.prompts, config.width
        self.rungs, self.length, self.width = rungs, prompts.length, width
        self.coupled, self.bits = prompts.couple, prompts.bits
        self.condensed = prompts.keep is not None
        self.dropped = prompts.dropout is not None
        self.tokens = nn.Parameter(torch.randn(rungs, prompts.length, width) * DEVIATION)
        if self.of_pictures and self.coupled:
            # MaPLe-style coupling, arXiv:2210.03117, zero at the start
            self.couple = nn.Parameter(torch.zeros(rungs, width, width))
        elif self.of_pictures:
            self.image_tokens = nn.Parameter(torch.randn(rungs, prompts.length, width) * DEVIATION)
        if self.condensed:
            self.register_buffer("mask", torch.ones(rungs, prompts.length))
        if self.dropped:
            # the device fills it before every training step: 0 or 1 / (1 - p), as nn.Dropout
            self.register_buffer("dropout", torch.ones(2, rungs, prompts.length, width))
        if self.bits is not None:
            self.register_buffer("codebook", normal_codebook(self.bits))
            # a stored adapter brings mean and deviation of each rung's prompts, because those of
            # the quantized ones are others; in training `live` is 1 and they are measured
            sets = 2 if self.of_pictures and not self.coupled else 1
            self.register_buffer("live", torch.ones(1))
            self.register_buffer("statistics", torch.zeros(sets, 2, rungs, 1, 1))

    @classmethod
    def tensors(cls) -> PromptTensors:
        """Which of the ladder's tensors are these prompts: what the bundle tells a device."""
        return PromptTensors(
            by_place=tuple(f"{_NAME}.{name}" for name in cls.by_place),
            of_pictures=cls.of_pictures,
        )

    def kept(self) -> tuple[Tensor, ...]:
        """Places of each rung's kept prompts, (k,) int64; none where prompts are not condensed.

        The first place, which the mask silences, stands in a rung that keeps none: no graph meets
        a tensor without elements, which onnxruntime 1.19 does not multiply.
        """
        if not self.condensed:
            return ()
        found = (row.nonzero().flatten() for row in self.mask)
        return tuple(rows if len(rows) else rows.new_zeros(1) for rows in found)

    def prepare(self, pictures: Sequence[Tensor], tokens: int) -> PreparedPrompts:
        """Quantise and couple all rungs' prompts at once.

        Args:
            pictures: the projected taps of the pictures, (T * N, d) per tap, for kinds whose
                prompts depend on the picture.
            tokens: T, of a picture's tap.
        """
        text = self.sized(self.quantized(self.tokens, 0))
        if self.coupled:
            image = text + text @ self.couple
        else:
            image = self.sized(self.quantized(self.image_tokens, 1))
        if self.dropped:
            image, text = image * self.dropout[0], text * self.dropout[1]
        return PreparedPrompts(self, (image.unbind(0), text.unbind(0)))

    def sized(self, tokens: Tensor) -> Tensor:
        """Tokens as large as they act."""
        return tokens if self.size == 1.0 else tokens * self.size

    def quantized(self, tokens: Tensor, which: int) -> Tensor:
        """What a stored adapter will hold of tokens (L, m, d); `which`: of the statistics' sets."""
        if self.bits is None:
            return tokens
        mask = self.mask if self.condensed else None
        return quantize(tokens, which, self.codebook, (self.live, self.statistics), mask)

    def copy_attention(self, sides: Sequence[Mapping[int, RungWeights]]) -> None:
        """Take a copy of the rungs' attention weights, for kinds that have one of their own.

        Args:
            sides: rungs by their index, once where both sides share them, else image and text.
        """
        return

    def attended(self, prompts: RungPrompts) -> Sequence[Tensor]:
        """Nothing, unless the kind says otherwise."""
        return ()

    def after_attention(
        self, prompts: RungPrompts, rung: RungWeights, it: Attention, sides: Sequence[int]
    ) -> Tensor:
        """What attention gave, added to the state, unless the kind says otherwise."""
        return it.added()

    def beside_feed_forward(
        self, prompts: RungPrompts, inner: Tensor, fed: Tensor, sides: Sequence[int]
    ) -> Tensor:
        """The feed-forward layer's own output, unless the kind says otherwise."""
        return fed


METHODS: dict[str, type[PromptMethod]] = {}
Method = TypeVar("Method", bound=PromptMethod)


def register(kind: str) -> Callable[[type[Method]], type[Method]]:
    """Make a class the prompts of a kind.

    Raises:
        ValueError: the kind has no row in `edgeladder/core/prompt_kinds.py`, or has a class.
    """

    def add(method: type[Method]) -> type[Method]:
        if kind not in KINDS:
            raise ValueError(
                f"{method.__name__}: kind {kind!r} has no row in edgeladder/core/prompt_kinds.py"
            )
        if kind in METHODS:
            raise ValueError(
                f"{method.__name__}: kind {kind!r} is {METHODS[kind].__name__} already"
            )
        method.kind = kind
        METHODS[kind] = method
        return method

    return add


def split(rows: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Rows in pieces; one piece is the rows themselves."""
    return rows.split(list(sizes)) if len(sizes) > 1 else (rows,)


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces as rows again."""
    return torch.cat(list(pieces)) if len(pieces) > 1 else pieces[0]


def standardise(rows: Tensor) -> Tensor:
    """Layer norm without affine part over the last dimension."""
    return functional.layer_norm(rows, rows.shape[-1:], eps=1e-5)
