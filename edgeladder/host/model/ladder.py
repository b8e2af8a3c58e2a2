"""The ladder: the small side network that is trained, as a torch module.

This is the one source of truth (contract 2). It is written to export well: activations are 2-D
rows, tokens first (row `t * N + n` is token t of sample n), so that attention needs one
transposition, the class token is a contiguous slice, and rows of pictures and of classes can lie
in one matrix and share every row-wise operator of a shared trunk.

Reparametrisations that cost no expressive power and save operators in every training step:
- layer norms have no affine part: it is folded into the weight that follows;
- no bias on keys (softmax ignores it), values, attention output and feed-forward output (each is
  absorbed by the next rung's `down` bias through the gate);
- QuickGELU(x W1) W2 = SiLU(x 1.702 W1) W2/1.702, so the activation is SiLU throughout;
- the 1/sqrt(head width) of attention lives in the query weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.core.manifest import TapGroup, TapRecord
from edgeladder.host.model.aggregate import Aggregate
from edgeladder.host.model.prompts import PreparedPrompts, RungPrompts, build_prompts
from edgeladder.host.model.prompts.base import joined, split, standardise


@dataclass(frozen=True)
class Side:
    """What the ladder knows of one tower: its taps in order, grouped by equal shape."""

    name: str
    taps: tuple[TapRecord, ...]
    groups: tuple[TapGroup, ...]

    @classmethod
    def of(cls, name: str, taps: Sequence[TapRecord]) -> Side:
        """Group taps of equal (tokens, width), first come first."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, tap in enumerate(taps):
            shapes.setdefault((tap.tokens, tap.width), []).append(index)
        groups = tuple(
            TapGroup(
                input=f"{name}_taps_{number}",
                side=name,  # type: ignore[arg-type]
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


class Rung(nn.Module):
    """A transformer block of the ladder's width over the rows of one or both sides."""

    def __init__(self, config: LadderConfig, fused: bool):
        super().__init__()
        width, hidden = config.width, int(config.width * config.hidden)
        self.width, self.heads = width, config.heads
        # LST's gate, arXiv:2206.06522: sigma(alpha / 0.1), alpha = 0
        self.gate = nn.Parameter(torch.zeros(1)) if fused and config.fuse == "gate" else None
        self.query = nn.Parameter(torch.randn(width, width) * (config.heads / width / width) ** 0.5)
        self.query_bias = nn.Parameter(torch.zeros(width))
        # keys and values in one product: [Wk | Wv]
        self.key_value = nn.Parameter(torch.randn(width, 2 * width) * width**-0.5)
        self.out = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.up = nn.Parameter(torch.randn(width, hidden) * width**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(hidden))
        self.down = nn.Parameter(torch.randn(hidden, width) * hidden**-0.5)

    def forward(
        self,
        state: Tensor | None,
        taps: Tensor,
        tokens: Sequence[int],
        counts: Sequence[int],
        prompts: RungPrompts,
    ) -> Tensor:
        """One rung.

        Args:
            state: (R, d), R = sum of tokens * samples over the sides; None in the first rung.
            taps: (R, d), the rung's projected taps.
            tokens: tokens per side.
            counts: samples per side.
            prompts: this rung's.

        Returns:
            (R, d).
        """
        if state is None:
            state = taps
        elif self.gate is not None:
            state = state + torch.sigmoid(self.gate * -10.0) * (taps - state)
        else:
            state = state + taps
        rows = standardise(state)
        state = state + self.attend(rows, tokens, counts, prompts) @ self.out
        sides = [t * n for t, n in zip(tokens, counts, strict=True)]
        state = prompts.after_attention(self, state, sides)
        inner = standardise(state)
        hidden = functional.silu(torch.addmm(self.up_bias, inner, self.up))
        fed = torch.addmm(state, hidden, self.down)
        return prompts.beside_feed_forward(inner, fed, sides)

    def attend(
        self,
        rows: Tensor,
        tokens: Sequence[int],
        counts: Sequence[int],
        prompts: RungPrompts,
    ) -> Tensor:
        """Self-attention within each sample, prompts as further keys and values: -> (R, d)."""
        sides = [t * n for t, n in zip(tokens, counts, strict=True)]
        extra = prompts.attended()
        query = split(torch.addmm(self.query_bias, rows, self.query), sides)
        seen = torch.cat([rows, *extra]) if extra else rows
        pieces = [*sides, *[prompt.shape[0] for prompt in extra]]
        keys_values = split(seen @ self.key_value, pieces)
        attended = []
        for side, (length, count) in enumerate(zip(tokens, counts, strict=True)):
            joint = keys_values[side].reshape(length, count, 2 * self.width)
            bias = None
            if extra:
                prompt = keys_values[len(sides) + side].unsqueeze(1).expand(-1, count, -1)
                joint = torch.cat([joint, prompt])  # (M, N, 2 d)
                if prompts.condensed:
                    bias = functional.pad(prompts.bias(), (length, 0))  # (1, M)
            keys, values = joint.split(self.width, -1)
            attended.append(self.heads_attend(query[side], keys, values, length, bias))
        return joined(attended)

    def heads_attend(
        self, query: Tensor, keys: Tensor, values: Tensor, length: int, bias: Tensor | None
    ) -> Tensor:
        """softmax(q k^T) v per sample and head: (T * N, d), (M, N, d) twice -> (T * N, d)."""
        inner = self.width // self.heads
        query = query.reshape(length, -1, inner).transpose(0, 1)  # (N * H, T, d/H)
        keys = keys.reshape(keys.shape[0], -1, inner).permute(1, 2, 0)  # (N * H, d/H, M)
        values = values.reshape(values.shape[0], -1, inner).transpose(0, 1)  # (N * H, M, d/H)
        scores = torch.matmul(query, keys)
        if bias is not None:
            scores = scores + bias
        mixed = torch.matmul(torch.softmax(scores, -1), values)
        return mixed.transpose(0, 1).reshape(-1, self.width)


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
        # the one zero factor of each residual path: the floor to start from (contract 3)
        if config.share == "trunk+up":
            self.up = nn.Parameter(torch.zeros(width, embedding_dim))
        else:
            self.image_up = nn.Parameter(torch.zeros(width, embedding_dim))
            self.text_up = nn.Parameter(torch.zeros(width, embedding_dim))
        self.project: nn.Parameter | None = None
        if config.project and embedding_pre_dim is not None:
            self.project = nn.Parameter(torch.zeros(embedding_pre_dim, embedding_dim))

    def forward(
        self,
        image_taps: Sequence[Tensor],
        image_embedding: Tensor,
        text_taps: Sequence[Tensor],
        text_embedding: Tensor,
        image_embedding_pre: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tuned embeddings of pictures and classes.

        Args:
            image_taps: one (L, T, B, W) per group, standardised over W.
            image_embedding: (B, D), L2-normalised.
            text_taps: one (L, T, C, W) per group.
            text_embedding: (C, D), L2-normalised.
            image_embedding_pre: (B, W), before CLIP's projection, divided by the norm of the
                embedding after it; only where the ladder projects.

        Returns:
            (B, D) and (C, D), L2-normalised.
        """
        counts = (image_embedding.shape[0], text_embedding.shape[0])
        downs = (self.image_down(image_taps), self.text_down(text_taps))
        prompts = self.prompts.prepare()
        read = (
            self.climb_together(downs, counts, prompts)
            if self.shared
            else (
                self.climb(0, downs[0], counts[0], prompts),
                self.climb(1, downs[1], counts[1], prompts),
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
            tuned(image_embedding, image_delta),
            tuned(text_embedding, functional.relu(text) @ text_up),
        )

    def climb(
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

    def climb_together(
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


def read_out(rows: Tensor, tokens: int) -> Tensor:
    """Mean over a sample's tokens: (T * N, d) -> (N, d)."""
    return rows.reshape(tokens, -1, rows.shape[-1]).mean(0)


def tuned(embedding: Tensor, delta: Tensor) -> Tensor:
    """normalize(z + bounded(delta)), (N, D).

    The bound delta / sqrt(1 + |delta|^2) keeps the step shorter than the unit embedding, so the
    sum never vanishes.
    """
    bounded = delta / torch.sqrt(1.0 + (delta * delta).sum(-1, keepdim=True))
    moved = embedding + bounded
    return moved / torch.sqrt((moved * moved).sum(-1, keepdim=True))


class Objective(nn.Module):
    """Cross-entropy of CLIP's logits against soft targets.

    Label smoothing and the pull to zero-shot (KL to the zero-shot distribution) only change the
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (scalar) and both tuned embeddings; targets: (B, C), rows need not sum to 1."""
        image, text = self.ladder(
            image_taps, image_embedding, text_taps, text_embedding, image_embedding_pre
        )
        logits = self.logit_scale * (image @ text.transpose(0, 1))
        loss = -(targets * functional.log_softmax(logits, -1)).sum(-1).mean()
        return loss, image, text
