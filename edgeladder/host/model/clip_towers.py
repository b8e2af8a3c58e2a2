"""open_clip's own towers: its vision transformer and its text transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import ConfigError
from edgeladder.core.manifest import TapRecord
from edgeladder.host.model.frozen_tower import (
    Call,
    ImageTap,
    Piece,
    TextSelector,
    TextTap,
    Tower,
    chain,
    linear,
    norms,
)


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

        def tail(owner: Any, hidden: Tensor) -> Any:
            pooled, _ = owner._pool(hidden)
            return (pooled @ owner.proj, pooled) if owner.proj is not None else pooled

        outputs = ["embedding", *(["embedding_pre"] if visual.proj is not None else [])]
        return chain(
            self.source,
            Call(visual, lambda owner, pixels: owner._embeds(pixels)),
            list(visual.transformer.resblocks),
            Call(visual, tail),
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


class ClipTextTower(Tower):
    """open_clip's text transformer, inside CLIP or as CustomTextCLIP's TextTransformer."""

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
        self.size = int(
            getattr(self.inner, "num_pos", 0) or self.inner.positional_embedding.shape[0]
        )
        if getattr(self.inner, "cls_emb", None) is not None:
            raise ConfigError(
                "text towers with an appended class token (CoCa) are not supported",
                where="--model",
                remedy="take a CLIP or SigLIP model",
            )
        self.pool = getattr(self.inner, "text_pool_type", None) or getattr(
            self.inner, "pool_type", "argmax"
        )

    def width(self, block: int) -> int:
        return int(self.inner.transformer.width)

    def _mask(self) -> Tensor | None:
        mask = getattr(self.inner, "attn_mask", None)
        return mask if isinstance(mask, Tensor) else None

    def selector(self, config: TapConfig) -> TextSelector:
        """What is read of a text."""
        end = getattr(self.inner, "text_eos_id", None) or getattr(self.inner, "eos_id", None)
        start = 1 if self.pool in ("argmax", "eos") else 0
        pad = int(getattr(self.inner, "pad_id", 0) or 0)
        if self.pool == "last":
            pad = 1  # SigLIP's sentencepiece pads with </s>
        return TextSelector(str(self.pool), end, pad, start, config)

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        def stem(owner: Any, tokens: Tensor) -> Any:
            hidden = owner.token_embedding(tokens)
            hidden = hidden + owner.positional_embedding[: tokens.shape[1]]
            return hidden, *owner.selector(tokens)

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
        last.ln_final, last.text_projection = inner.ln_final, inner.text_projection
        return chain(
            self.source,
            Call(first, stem),
            list(inner.transformer.resblocks),
            Call(last, tail),
            ["embedding"],
            {tap.block: TextTap() for tap in taps},
            self._mask(),
            text=True,
        )

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.network.encode_text(batch)}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        result = self.whole(batch)
        indices = [tap.block for tap in taps]
        if self.custom:
            found = self.inner.forward_intermediates(batch, indices=indices, output_fmt="NLC")
        else:
            found = self.network.forward_intermediates(
                text=batch, text_indices=indices, normalize=False
            )
        key = next(k for k in found if k.endswith("intermediates"))
        selector = self.selector(config)(batch)[1]
        for tap, hidden in zip(taps, found[key], strict=True):
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
