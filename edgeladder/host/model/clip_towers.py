"""open_clip's own towers: its vision transformer and its text transformer, CoCa's among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import ConfigError
from edgeladder.core.manifest import TapRecord
from edgeladder.host.model.frozen_tower import (
    PADDED,
    PADDED_TEXT,
    TEXT,
    Call,
    Piece,
    Tower,
    chain,
    linear,
    norms,
)
from edgeladder.host.model.taps import ImageTap, TextSelector, TextTap


class ClipImageTower(Tower):
    """open_clip's VisionTransformer."""

    def __init__(self, visual: Any):
        self.visual = visual
        self.blocks = len(visual.transformer.resblocks)
        size = visual.image_size
        self.size = int(size[0] if isinstance(size, (tuple, list)) else size)

    def width(self, block: int) -> int:
        return int(self.visual.transformer.width)

    def _taps(self, taps: list[TapRecord], config: TapConfig) -> dict[int, nn.Module]:
        side = int(self.visual.grid_size[0])
        return {tap.block: ImageTap(side, 1, config) for tap in taps}

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        visual = self.visual

        pool: Any = AttentionPool(visual) if visual.attn_pool is not None else None

        def tail(owner: Any, hidden: Tensor) -> Any:
            pooled = owner._pool(hidden)[0] if pool is None else owner.pool(hidden)
            return (pooled @ owner.proj, pooled) if owner.proj is not None else pooled

        last = visual
        if pool is not None:
            last = nn.Module()
            last.pool, last.proj = pool, visual.proj
        outputs = ["embedding", *(["embedding_pre"] if visual.proj is not None else [])]
        return chain(
            self.source,
            Call(visual, lambda owner, pixels: owner._embeds(pixels)),
            list(visual.transformer.resblocks),
            Call(last, tail),
            outputs,
            self._taps(taps, config),
        )

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        found = self.visual(batch)
        return {"embedding": found[0] if isinstance(found, tuple) else found}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        found = self.visual.forward_intermediates(
            batch, indices=[t.block for t in taps], output_fmt="NLC", output_extra_tokens=True
        )
        modules = self._taps(taps, config)
        result = {"embedding": found["image_features"]}
        for tap, prefix, tokens in zip(
            taps, found["image_intermediates_prefix"], found["image_intermediates"], strict=True
        ):
            result[tap.name] = modules[tap.block](torch.cat([prefix, tokens], 1))
        return result

    def block_weights(self, block: int) -> dict[str, Any] | None:
        return clip_block_weights(self.visual.transformer.resblocks[block])


class AttentionPool(nn.Module):
    """CoCa's attentional pooler, of whose queries only the first gives the embedding.

    The others are what its captions are written from. Yu et al., arXiv:2205.01917, section 3.2.
    """

    def __init__(self, visual: Any):
        """Of open_clip's VisionTransformer.

        Raises:
            ConfigError: it pools in another way.
        """
        super().__init__()
        if visual.attn_pool_contrastive is not None or visual.pool_type != "tok":
            raise ConfigError(
                "an attentional pooler of another make than CoCa's is not supported",
                where="--model",
                remedy="take a CLIP, CoCa or SigLIP model",
            )
        self.pooler, self.norm = visual.attn_pool, visual.ln_post

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, T, W) -> (N, D): one query looks at all tokens, its attention written out."""
        attention = self.pooler.attn
        heads, width = attention.num_heads, attention.embed_dim
        if attention.in_proj_weight is not None:  # where tokens are as wide as queries
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = [getattr(attention, f"{role}_proj_weight") for role in "qkv"]
        biases = attention.in_proj_bias.chunk(3)
        tokens = self.pooler.ln_k(hidden)
        query, key, value = (
            functional.linear(given, weight, bias)
            for given, weight, bias in zip(
                (self.pooler.ln_q(self.pooler.query[:1]), tokens, tokens),
                weights, biases, strict=True,
            )
        )  # fmt: skip
        size = width // heads
        query = query.reshape(1, 1, heads, size).transpose(1, 2) * size**-0.5
        key, value = (
            part.reshape(-1, hidden.shape[1], heads, size).transpose(1, 2) for part in (key, value)
        )
        mixed = torch.softmax(query @ key.transpose(-1, -2), -1) @ value
        mixed = attention.out_proj(mixed.transpose(1, 2).reshape(-1, width))
        pooled: Tensor = self.norm(mixed)
        return pooled


class ClipTextTower(Tower):
    """open_clip's text transformer, inside CLIP, CoCa or CustomTextCLIP.

    CoCa's appends a class token, which is pooled, and hides padding from it and from all others.
    """

    source = "tokens"

    def __init__(self, network: Any):
        inner = getattr(network, "text", None)
        self.network, self.inner = network, inner if isinstance(inner, nn.Module) else network
        self.custom = self.inner is not network
        if not hasattr(self.inner, "transformer") or not hasattr(self.inner, "token_embedding"):
            raise ConfigError(
                f"text towers of type {type(self.inner).__name__} are not supported",
                where="--model",
                remedy="take a model with open_clip's own text transformer",
            )
        self.blocks = len(self.inner.transformer.resblocks)
        self.appends = getattr(self.inner, "cls_emb", None) is not None
        self.padded = self.appends or bool(getattr(self.inner, "use_pad_mask", False))
        positions = int(
            getattr(self.inner, "num_pos", 0) or self.inner.positional_embedding.shape[0]
        )
        self.size = positions - self.appends
        self.pool = getattr(self.inner, "text_pool_type", None) or getattr(
            self.inner, "pool_type", "argmax"
        )
        if self.appends:
            self.pool = "appended"

    def width(self, block: int) -> int:
        return int(self.inner.transformer.width)

    def _mask(self) -> Tensor | None:
        mask = getattr(self.inner, "attn_mask", None)
        return mask if isinstance(mask, Tensor) else None

    def selector(self, config: TapConfig) -> TextSelector:
        """What is read of a text."""
        end = getattr(self.inner, "text_eos_id", None) or getattr(self.inner, "eos_id", None)
        start = 1 if self.pool in ("argmax", "eos", "appended") else 0
        pad = int(getattr(self.inner, "pad_id", 0) or 0)
        if self.pool == "last":
            pad = 1  # SigLIP's sentencepiece pads with </s>
        return TextSelector(str(self.pool), end, pad, start, config)

    def _padding(self, tokens: Tensor) -> Tensor:
        """(N, ctx) -> (N, 1, T): what is added to the score of each position."""
        valid = (tokens != self.inner.pad_id).float()
        if self.appends:
            own = torch.ones_like(valid[:, :1])
            # published weights were trained with the mask one position off: open_clip's "legacy"
            valid = torch.cat([valid, own] if self.inner.correct_cls_mask else [own, valid], 1)
        return ((1.0 - valid) * PADDED).unsqueeze(1)

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        def stem(owner: Any, tokens: Tensor) -> Any:
            hidden = owner.token_embedding(tokens)
            if self.appends:
                own = owner.cls_emb.reshape(1, 1, -1).expand(hidden.shape[0], -1, -1)
                hidden = torch.cat([hidden, own], 1)
            hidden = hidden + owner.positional_embedding[: hidden.shape[1]]
            more = [self._padding(tokens)] if self.padded else []
            return hidden, *owner.selector(tokens), *more

        def tail(owner: Any, hidden: Tensor, pool: Tensor) -> Tensor:
            pooled = torch.matmul(pool, owner.ln_final(hidden)).squeeze(1)
            projection = owner.text_projection
            if projection is None:
                return pooled
            linear = isinstance(projection, nn.Linear)
            projected: Tensor = projection(pooled) if linear else pooled @ projection
            return projected

        inner, first, last = self.inner, nn.Module(), nn.Module()
        first.token_embedding, first.selector = inner.token_embedding, self.selector(config)
        first.positional_embedding = inner.positional_embedding
        first.cls_emb = inner.cls_emb if self.appends else None
        last.ln_final, last.text_projection = inner.ln_final, inner.text_projection
        return chain(
            self.source,
            Call(first, stem),
            list(inner.transformer.resblocks),
            Call(last, tail),
            ["embedding"],
            {tap.block: TextTap() for tap in taps},
            self._mask(),
            PADDED_TEXT if self.padded else TEXT,
        )

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        # CoCa's own `encode_text` gives unit vectors
        found = self.inner(batch) if self.custom else self.network.encode_text(batch)
        return {"embedding": found[0] if isinstance(found, tuple) else found}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        result = self.whole(batch)
        indices = [tap.block for tap in taps]
        if self.custom:
            found = self.inner.forward_intermediates(
                batch, indices=indices, output_fmt="NLC", output_extra_tokens=self.appends
            )
        else:
            found = self.network.forward_intermediates(
                text=batch, text_indices=indices, normalize=False
            )
        key = next(k for k in found if k.endswith("intermediates"))
        hidden_states = found[key]
        if self.appends:
            own = found["text_intermediates_suffix"]
            hidden_states = [torch.cat(pair, 1) for pair in zip(hidden_states, own, strict=True)]
        selector = self.selector(config)(batch)[1]
        for tap, hidden in zip(taps, hidden_states, strict=True):
            result[tap.name] = TextTap()(hidden, selector)
        return result

    def block_weights(self, block: int) -> dict[str, Any] | None:
        return clip_block_weights(self.inner.transformer.resblocks[block])


def clip_block_weights(block: Any) -> dict[str, Any] | None:
    """Weights of open_clip's ResidualAttentionBlock by role."""
    attention = getattr(block, "attn", None)
    if not isinstance(attention, nn.MultiheadAttention):
        return None
    activation = type(block.mlp[1]).__name__
    return {
        **norms(block.ln_1, block.ln_2),
        "qkv_weight": attention.in_proj_weight,
        "qkv_bias": attention.in_proj_bias,
        **linear("out", attention.out_proj, block.ls_1),
        **linear("fc1", block.mlp.c_fc),
        **linear("fc2", block.mlp.c_proj, block.ls_2),
        "heads": attention.num_heads,
        "activation": "quick_gelu" if "Quick" in activation else "gelu",
    }
