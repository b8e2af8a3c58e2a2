"""The ladder: the small side network that is trained, as a torch module.

This is the one source of truth (contract 2). Activations are rows as in `rung.py`, so that the
class token is a contiguous slice and a trunk may be shared by the rows of both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.core.manifest import TapGroup, TapRecord
from edgeladder.host.model.aggregate import Aggregate
from edgeladder.host.model.prompts import PreparedPrompts, build_prompts
from edgeladder.host.model.prompts.base import RungWeights, joined
from edgeladder.host.model.rung import Rung


@dataclass(frozen=True)
class Side:
    """What the ladder knows of one tower: its taps in order, grouped by equal shape."""

    name: Literal["image", "text"]
    taps: tuple[TapRecord, ...]
    groups: tuple[TapGroup, ...]

    @classmethod
    def of(cls, name: Literal["image", "text"], taps: Sequence[TapRecord]) -> Side:
        """Group taps of equal (tokens, width), first come first."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, tap in enumerate(taps):
            shapes.setdefault((tap.tokens, tap.width), []).append(index)
        groups = tuple(
            TapGroup(
                input=f"{name}_taps_{number}",
                side=name,
                taps=indices,
                tokens=tokens,
                width=width,
            )
            for number, ((tokens, width), indices) in enumerate(shapes.items())
        )
        return cls(name, tuple(taps), groups)

    @property
    def tokens(self) -> int:
        """Tokens per rung: all taps of a side must have the same number."""
        return self.taps[0].tokens


class Down(nn.Module):
    """Taps of one side -> ladder width, all taps of a group in one batched product."""

    def __init__(self, side: Side, width: int):
        super().__init__()
        self.side = side
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(len(g.taps), g.width, width) * g.width**-0.5)
            for g in side.groups
        )
        self.bias = nn.ParameterList(
            nn.Parameter(torch.zeros(len(g.taps), 1, width)) for g in side.groups
        )

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """(L, T, N, W) per group -> one (T * N, d) per tap, in the tower's order."""
        rows: dict[int, Tensor] = {}
        for group, tap, weight, bias in zip(
            self.side.groups, taps, self.weights, self.bias, strict=True
        ):
            flat = tap.reshape(len(group.taps), -1, group.width)  # (L, T * N, W)
            down = torch.matmul(flat, weight) + bias
            for index, piece in zip(group.taps, down.unbind(0), strict=True):
                rows[index] = piece
        return [rows[index] for index in range(len(self.side.taps))]


class Ladder(nn.Module):
    """Both sides' taps and embeddings -> tuned embeddings; a residual that starts at zero."""

    def __init__(
        self,
        config: LadderConfig,
        image: Sequence[TapRecord],
        text: Sequence[TapRecord],
        embedding_dim: int,
        embedding_pre_dim: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.image, self.text = Side.of("image", image), Side.of("text", text)
        self.sides = (self.image, self.text)
        width, rungs = config.width, max(len(image), len(text))
        # a tower with fewer taps joins at the later rungs
        self.first = tuple(rungs - len(side.taps) for side in self.sides)
        self.shared = config.share != "none"
        self.image_down, self.text_down = Down(self.image, width), Down(self.text, width)
        if self.shared:
            start = min(self.first)
            self.rungs = nn.ModuleList(Rung(config, i > start) for i in range(rungs))
        else:
            self.image_rungs = nn.ModuleList(
                Rung(config, i > 0) for i in range(len(self.image.taps))
            )
            self.text_rungs = nn.ModuleList(Rung(config, i > 0) for i in range(len(self.text.taps)))
        self.prompts = build_prompts(config, rungs)
        self.aggregate = Aggregate(config, rungs)
        if config.first == "gated":  # as the rungs' gates
            self.image_gate = nn.Parameter(torch.zeros(1))
            self.text_gate = nn.Parameter(torch.zeros(1))
        # the one zero factor of each residual path: the floor to start from (contract 3)
        if config.share == "trunk+up":
            self.up = nn.Parameter(torch.zeros(width, embedding_dim))
        else:
            self.image_up = nn.Parameter(torch.zeros(width, embedding_dim))
            self.text_up = nn.Parameter(torch.zeros(width, embedding_dim))
        self.project: nn.Parameter | None = None
        if config.project and embedding_pre_dim is not None:
            self.project = nn.Parameter(torch.zeros(embedding_pre_dim, embedding_dim))
        self.copy_attention()

    def copy_attention(self) -> None:
        """Hand the prompts the rungs' attention as it is now: again, once it is initialised."""
        sides: list[dict[int, RungWeights]] = []
        given = (
            [(self.rungs, 0)]
            if self.shared
            else [
                (rungs, first)
                for rungs, first in zip(
                    (self.image_rungs, self.text_rungs), self.first, strict=True
                )
            ]
        )
        for rungs, first in given:
            found = {k + first: rung for k, rung in enumerate(rungs) if isinstance(rung, Rung)}
            sides.append(dict(found))
        self.prompts.copy_attention(sides)

    def forward(
        self,
        image_taps: Sequence[Tensor],
        image_embedding: Tensor,
        text_taps: Sequence[Tensor],
        text_embedding: Tensor,
        image_embedding_pre: Tensor | None = None,
        rows: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """Tuned embeddings of pictures and classes.

        Args:
            image_taps: one (L, T, B, W) per group, standardised over W.
            image_embedding: (B, D), L2-normalised.
            text_taps: one (L, T, C, W) per group.
            text_embedding: (C, D), L2-normalised.
            image_embedding_pre: (B, W), before CLIP's projection, divided by the norm of the
                embedding after it; only where the ladder projects.
            rows: places (k,) of each rung's kept prompts; none: as the prompts' mask says.

        Returns:
            (B, D) and (C, D), L2-normalised.
        """
        counts = (image_embedding.shape[0], text_embedding.shape[0])
        downs = (self.image_down(image_taps), self.text_down(text_taps))
        prompts = self.prompts.prepare(downs[0], self.image.tokens)
        prompts = prompts.only(rows or self.prompts.kept())
        if self.config.first == "gated":
            for taps, gate in zip(downs, (self.image_gate, self.text_gate), strict=True):
                taps[0] = begin(taps[0], gate)
        read = (
            self.encode_together(downs, counts, prompts)
            if self.shared
            else (
                self.encode_side(0, downs[0], counts[0], prompts),
                self.encode_side(1, downs[1], counts[1], prompts),
            )
        )
        image, text = (self.aggregate(r) for r in read)
        image_up, text_up = (
            (self.up, self.up) if self.config.share == "trunk+up" else (self.image_up, self.text_up)
        )
        image_delta = functional.relu(image) @ image_up
        if self.project is not None:
            # ProLIP, anchored: W0 + dW on the features before the projection
            assert image_embedding_pre is not None
            image_delta = image_delta + image_embedding_pre @ self.project
        return (
            add_residual(image_embedding, image_delta),
            add_residual(text_embedding, functional.relu(text) @ text_up),
        )

    def encode_side(
        self, which: int, downs: list[Tensor], count: int, prompts: PreparedPrompts
    ) -> list[Tensor]:
        """Rungs of one side alone: what each rung reads out, (N, d)."""
        rungs = (self.image_rungs, self.text_rungs)[which]
        tokens = self.sides[which].tokens
        state, read = None, []
        for index, (rung, taps) in enumerate(zip(rungs, downs, strict=True)):
            given = prompts.side(which).of(index + self.first[which])
            state = rung(state, taps, [tokens], [count], given)
            read.append(read_out(state, tokens))
        return read

    def encode_together(
        self, downs: Sequence[list[Tensor]], counts: Sequence[int], prompts: PreparedPrompts
    ) -> list[list[Tensor]]:
        """Shared rungs over the rows of both sides: what each rung reads out per side."""
        tokens = [side.tokens for side in self.sides]
        state: Tensor | None = None
        read: list[list[Tensor]] = [[], []]
        for index, rung in enumerate(self.rungs):
            active = [s for s in (0, 1) if index >= self.first[s]]
            taps = [downs[s][index - self.first[s]] for s in active]
            joining = [s for s in active if index == self.first[s]]
            if state is not None and joining:  # a side's first rung starts from its tap
                pieces = [taps[active.index(s)] if s in joining else state for s in active]
                state = torch.cat(pieces)
            given = prompts if len(active) == 2 else prompts.side(active[0])
            state = rung(
                state,
                joined(taps),
                [tokens[s] for s in active],
                [counts[s] for s in active],
                given.of(index),
            )
            rows = [tokens[s] * counts[s] for s in active]
            for s, piece in zip(active, state.split(rows), strict=True):
                read[s].append(read_out(piece, tokens[s]))
        return read


def begin(tap: Tensor, gate: Tensor) -> Tensor:
    """LST's gated first state s_0 = sigmoid(a / 0.1) Down_0(x), (R, d), arXiv:2206.06522.

    LST gates the input embeddings; no tap sits before the first block here, so x is the first tap.
    A rung begins with a layer norm, so the gate says how much the state counts beside what the
    rungs add to it.
    """
    return torch.sigmoid(gate * -10.0) * tap


def read_out(rows: Tensor, tokens: int) -> Tensor:
    """Mean over a sample's tokens: (T * N, d) -> (N, d)."""
    return rows.reshape(tokens, -1, rows.shape[-1]).mean(0)


def add_residual(embedding: Tensor, delta: Tensor) -> Tensor:
    """normalize(z + bounded(delta)), (N, D).

    The bound delta / sqrt(1 + |delta|^2) keeps the step shorter than the unit embedding, so the
    sum never vanishes.
    """
    bounded = delta / torch.sqrt(1.0 + (delta * delta).sum(-1, keepdim=True))
    moved = embedding + bounded
    return moved / torch.sqrt((moved * moved).sum(-1, keepdim=True))


class Objective(nn.Module):
    """Cross-entropy of CLIP's logits against soft targets.

    Label smoothing and the anchor to zero-shot (KL to the zero-shot distribution) only change the
    targets, which do not depend on the parameters, so the engine prepares them.
    """

    def __init__(self, ladder: Ladder, logit_scale: float):
        super().__init__()
        self.ladder = ladder
        self.logit_scale = logit_scale

    def forward(
        self,
        image_taps: Sequence[Tensor],
        image_embedding: Tensor,
        text_taps: Sequence[Tensor],
        text_embedding: Tensor,
        targets: Tensor,
        image_embedding_pre: Tensor | None = None,
        rows: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (scalar) and both tuned embeddings; targets: (B, C), rows need not sum to 1."""
        image, text = self.ladder(
            image_taps, image_embedding, text_taps, text_embedding, image_embedding_pre, rows
        )
        logits = self.logit_scale * (image @ text.transpose(0, 1))
        loss = -(targets * functional.log_softmax(logits, -1)).sum(-1).mean()
        return loss, image, text
