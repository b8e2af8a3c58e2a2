"""Frozen towers as chains of pieces: stem, one per block, tail.

A piece maps named tensors to named tensors, so that pieces can be exported one by one and chained
by name on the device. Transformer towers (open_clip's own and timm's) are cut at every block; any
other timm tower is one piece, run through the library's own `forward_intermediates`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.bundle import TapRecord
from edgeladder.config import TapConfig
from edgeladder.errors import ConfigError

TAP_EPSILON = 1e-5


def standardise(tokens: Tensor) -> Tensor:
    """Mean 0, variance 1 over the channels of each token: how taps leave the backbone."""
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=TAP_EPSILON)


def grid_pool(height: int, width: int, grid: int) -> Tensor:
    """Adaptive mean pooling of height x width cells to grid x grid, as a matrix (g^2, h w)."""
    cells = torch.eye(height * width).reshape(height * width, height, width)
    return functional.adaptive_avg_pool2d(cells, grid).reshape(height * width, -1).T.contiguous()


class ImageTap(nn.Module):
    """(N, [1 +] P, W) tokens -> (N, T, W): class token (or mean), then the pooled grid."""

    matrix: Tensor

    def __init__(self, side: int, prefix: int, config: TapConfig):
        super().__init__()
        cells = side * side
        rows = []
        if config.class_token:
            first = torch.zeros(1, prefix + cells)
            if prefix:
                first[0, 0] = 1.0
            else:
                first[0] = 1.0 / cells
            rows.append(first)
        if config.grid:
            pooled = grid_pool(side, side, config.grid)
            rows.append(functional.pad(pooled, (prefix, 0)))
        self.register_buffer("matrix", torch.cat(rows))

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool and standardise."""
        return standardise(self.matrix @ tokens)


class TextSelector(nn.Module):
    """Token ids (N, ctx) -> what is read of a text, as weights over its positions.

    `pool` (N, 1, ctx) picks the position that the model pools; `selector` (N, T, ctx) that and
    the means of `grid` spans over the words. A text of fewer words than spans repeats their mean.
    """

    def __init__(self, pool: str, end: int | None, pad: int, first: int, config: TapConfig):
        super().__init__()
        self.pool, self.end, self.pad, self.first = pool, end, pad, first
        self.config = config

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both, float32."""
        length = tokens.shape[1]
        place = torch.arange(length).unsqueeze(0)  # (1, ctx)
        if self.pool == "argmax":  # in float: onnxruntime has no ArgMax of 64-bit integers
            stop = tokens.float().argmax(-1, keepdim=True)
        elif self.pool == "eos":
            stop = (tokens == self.end).int().argmax(-1, keepdim=True)
        else:
            stop = (tokens != self.pad).long().sum(-1, keepdim=True)
        at = {"first": 0, "last": length - 1}.get(self.pool)
        pooled = (place == stop) if at is None else (place == at) & (stop >= 0)
        pool = pooled.float()
        rows = [pool] if self.config.class_token else []
        words = (place >= self.first) & (place < stop)
        everything = words.float()
        everything = everything / torch.clamp(everything.sum(-1, keepdim=True), min=1.0)
        spans = self.config.grid
        count = torch.clamp(stop - self.first, min=1)
        for span in range(spans):
            scaled = (place - self.first) * spans
            inside = words & (scaled >= span * count) & (scaled < (span + 1) * count)
            piece = inside.float()
            size = piece.sum(-1, keepdim=True)
            mean = piece / torch.clamp(size, min=1.0)
            rows.append(torch.where(size > 0, mean, everything))
        return pool.unsqueeze(1), torch.stack(rows, 1)


class TextTap(nn.Module):
    """(N, ctx, W) and `selector` (N, T, ctx) -> (N, T, W).

    All weights of a span are equal, so what half precision does to them on disk is a common
    factor, which standardising removes.
    """

    def forward(self, hidden: Tensor, selector: Tensor) -> Tensor:
        """Pool and standardise."""
        return standardise(torch.matmul(selector, hidden))


class Piece(nn.Module):
    """Part of a tower with named tensors in and out."""

    def __init__(self, inputs: list[str], outputs: list[str], body: nn.Module):
        super().__init__()
        self.inputs, self.outputs, self.body = inputs, outputs, body

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in order."""
        result = self.body(*tensors)
        return result if isinstance(result, tuple) else (result,)


class Tower:
    """A frozen tower: `pieces` for export, `whole` as referee, `block_weights` for the ladder."""

    source = "pixels"
    blocks: int
    size: int  # px of the image side, or context length

    def width(self, block: int) -> int:
        """Channels of the hidden state after a block."""
        raise NotImplementedError

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        """Stem, blocks and tail, the taps on the pieces after which they sit."""
        raise NotImplementedError

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        """`embedding` by the model's own forward pass."""
        raise NotImplementedError

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        """Taps by the library's own `forward_intermediates`, and the embedding."""
        raise NotImplementedError

    def block_weights(self, block: int) -> dict[str, Any] | None:
        """A transformer block's weights by role; None where the block is none."""
        return None


class PlainBlock(nn.Module):
    """open_clip's ResidualAttentionBlock with its attention written out.

    nn.MultiheadAttention exports with its projection cut into constants, which can be neither
    recognised nor mapped from the file.
    """

    def __init__(self, block: Any):
        super().__init__()
        self.block = block
        self.heads = block.attn.num_heads

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(N, T, W) -> (N, T, W)."""
        block, attention = self.block, self.block.attn
        length, width = x.shape[1], x.shape[2]
        joint = functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (
            part.reshape(-1, length, self.heads, width // self.heads).transpose(1, 2)
            for part in joint.chunk(3, -1)
        )
        scores = (query * (width // self.heads) ** -0.5) @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(-1, length, width)
        x = x + block.ls_1(attention.out_proj(mixed))
        return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def plain(block: Any) -> nn.Module:
    """A block in the form that exports best."""
    if isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
        return PlainBlock(block)
    if hasattr(getattr(block, "attn", None), "fused_attn"):
        block.attn.fused_attn = False  # timm: written out instead of the fused operator
    return block  # type: ignore[no-any-return]


class _Block(nn.Module):
    """A block, its tap if it has one."""

    def __init__(self, block: nn.Module, tap: nn.Module | None, mask: Tensor | None = None):
        super().__init__()
        self.block, self.tap = plain(block), tap
        if mask is not None:
            self.register_buffer("mask", mask)
        else:
            self.mask = None

    def forward(self, hidden: Tensor, *selector: Tensor) -> Any:
        """The block's hidden state, and its tap."""
        mask = self.mask
        hidden = self.block(hidden) if mask is None else self.block(hidden, attn_mask=mask)
        if self.tap is None:
            return hidden
        return hidden, self.tap(hidden, *selector)


class _Call(nn.Module):
    """Methods of a module as a module: what stems and tails are."""

    def __init__(self, owner: nn.Module, function: Any):
        super().__init__()
        self.owner = owner
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self.owner, *tensors)


def _chain(
    source: str,
    stem: nn.Module,
    blocks: list[nn.Module],
    tail: nn.Module,
    tail_outputs: list[str],
    taps: dict[int, nn.Module],
    mask: Tensor | None = None,
    text: bool = False,
) -> list[Piece]:
    """Pieces of a transformer tower; a text stem also says what is read of each text."""
    more = ["pool", "selector"] if text else []
    pieces = [Piece([source], ["hidden_0", *more], stem)]
    for index, block in enumerate(blocks):
        tap = taps.get(index)
        inputs = [f"hidden_{index}", *(more[1:] if tap is not None else [])]
        outputs = [f"hidden_{index + 1}", *([f"tap_{index}"] if tap is not None else [])]
        pieces.append(Piece(inputs, outputs, _Block(block, tap, mask)))
    inputs = [f"hidden_{len(blocks)}", *more[:1]]
    pieces.append(Piece(inputs, tail_outputs, tail))
    return pieces


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
        return _chain(
            self.source,
            _Call(visual, lambda owner, pixels: owner._embeds(pixels)),
            list(visual.transformer.resblocks),
            _Call(visual, tail),
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


class TimmImageTower(Tower):
    """A timm vision transformer (SigLIP and the like), cut at its blocks."""

    def __init__(self, visual: Any, size: int):
        self.visual, self.trunk, self.size = visual, visual.trunk, size
        self.blocks = len(self.trunk.blocks)

    def width(self, block: int) -> int:
        return int(self.trunk.embed_dim)

    def _taps(self, taps: list[TapRecord], config: TapConfig) -> dict[int, nn.Module]:
        side = int(self.trunk.patch_embed.grid_size[0])
        prefix = int(self.trunk.num_prefix_tokens)
        return {tap.block: ImageTap(side, prefix, config) for tap in taps}

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        def stem(owner: Any, pixels: Tensor) -> Tensor:
            hidden = owner._pos_embed(owner.patch_embed(pixels))
            return owner.norm_pre(owner.patch_drop(hidden))  # type: ignore[no-any-return]

        def tail(owner: Any, hidden: Tensor) -> Any:
            trunk = owner.trunk
            pre = trunk.forward_head(trunk.norm(hidden))
            return owner.head(pre), pre

        return _chain(
            self.source,
            _Call(self.trunk, stem),
            list(self.trunk.blocks),
            _Call(self.visual, tail),
            ["embedding", "embedding_pre"] if len(self.visual.head) else ["embedding"],
            self._taps(taps, config),
        )

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.visual(batch)}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        final, found = self.trunk.forward_intermediates(
            batch, indices=[t.block for t in taps], output_fmt="NLC", return_prefix_tokens=True
        )
        modules = self._taps(taps, config)
        result = {"embedding": self.visual.head(self.trunk.forward_head(final))}
        for tap, one in zip(taps, found, strict=True):
            tokens = torch.cat([one[1], one[0]], 1) if isinstance(one, tuple) else one
            result[tap.name] = modules[tap.block](tokens)
        return result

    def block_weights(self, block: int) -> dict[str, Any] | None:
        return timm_block_weights(self.trunk.blocks[block])


class TimmStagesTower(Tower):
    """Any other timm tower (EfficientNet, ConvNeXt, MobileCLIP): one piece, stages as blocks."""

    def __init__(self, visual: Any, size: int):
        self.visual, self.trunk, self.size = visual, visual.trunk, size
        with torch.no_grad():
            pixels = torch.zeros(1, 3, size, size)
            found = self.trunk.forward_intermediates(pixels, intermediates_only=True)
        self.shapes = [tuple(one.shape[1:]) for one in found]  # (C, H, W)
        self.blocks = len(self.shapes)

    def width(self, block: int) -> int:
        return int(self.shapes[block][0])

    def _taps(self, taps: list[TapRecord], config: TapConfig) -> nn.ModuleDict:
        return nn.ModuleDict(
            {tap.name: ImageTap(self.shapes[tap.block][1], 0, config) for tap in taps}
        )

    def _run(
        self, owner: Any, pixels: Tensor, taps: list[TapRecord], modules: nn.ModuleDict
    ) -> dict[str, Tensor]:
        indices = [tap.block for tap in taps]
        final, found = owner.trunk.forward_intermediates(pixels, indices=indices)
        pre = owner.trunk.forward_head(final)
        result = {"embedding": owner.head(pre)}
        if len(owner.head):
            result["embedding_pre"] = pre
        for tap, one in zip(taps, found, strict=True):
            result[tap.name] = modules[tap.name](one.flatten(2).transpose(1, 2))
        return result

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        modules = self._taps(taps, config)
        names = ["embedding", *(["embedding_pre"] if len(self.visual.head) else [])]
        names += [tap.name for tap in taps]

        def everything(owner: Any, pixels: Tensor) -> Any:
            found = self._run(owner, pixels, taps, owner.taps)
            return tuple(found[name] for name in names)

        holder = nn.Module()
        holder.trunk, holder.head, holder.taps = self.visual.trunk, self.visual.head, modules
        return [Piece([self.source], names, _Call(holder, everything))]

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.visual(batch)}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        return self._run(self.visual, batch, taps, self._taps(taps, config))


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
            return projection(pooled) if linear else pooled @ projection  # type: ignore[no-any-return]

        inner, first, last = self.inner, nn.Module(), nn.Module()
        first.token_embedding, first.selector = inner.token_embedding, self.selector(config)
        first.positional_embedding = inner.positional_embedding
        last.ln_final, last.text_projection = inner.ln_final, inner.text_projection
        return _chain(
            self.source,
            _Call(first, stem),
            list(inner.transformer.resblocks),
            _Call(last, tail),
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
        **_norms(block.ln_1, block.ln_2),
        "qkv_weight": attention.in_proj_weight,
        "qkv_bias": attention.in_proj_bias,
        "out_weight": attention.out_proj.weight,
        "out_bias": attention.out_proj.bias,
        **_feed_forward(block.mlp.c_fc, block.mlp.c_proj),
        "heads": attention.num_heads,
        "activation": "quick_gelu" if "Quick" in activation else "gelu",
    }


def timm_block_weights(block: Any) -> dict[str, Any] | None:
    """Weights of timm's vision transformer Block by role."""
    attention = getattr(block, "attn", None)
    if attention is None or not hasattr(attention, "qkv") or not hasattr(block, "mlp"):
        return None
    width = attention.qkv.weight.shape[1]
    bias = attention.qkv.bias
    return {
        **_norms(block.norm1, block.norm2),
        "qkv_weight": attention.qkv.weight,
        "qkv_bias": bias if bias is not None else torch.zeros(3 * width),
        "out_weight": attention.proj.weight,
        "out_bias": attention.proj.bias,
        **_feed_forward(block.mlp.fc1, block.mlp.fc2),
        "heads": attention.num_heads,
        "activation": "gelu",
    }


def _norms(first: Any, second: Any) -> dict[str, Tensor]:
    return {
        "ln1_weight": first.weight,
        "ln1_bias": first.bias,
        "ln2_weight": second.weight,
        "ln2_bias": second.bias,
    }


def _feed_forward(first: Any, second: Any) -> dict[str, Tensor]:
    return {
        "fc1_weight": first.weight,
        "fc1_bias": first.bias,
        "fc2_weight": second.weight,
        "fc2_bias": second.bias,
    }


def image_tower(network: Any) -> Tower:
    """The image tower of an open_clip model."""
    visual = network.visual
    if hasattr(visual, "trunk"):
        size = visual.image_size
        size = int(size[0] if isinstance(size, (tuple, list)) else size)
        blocks = getattr(visual.trunk, "blocks", None)
        flat = hasattr(visual.trunk, "_pos_embed") and hasattr(visual.trunk, "patch_embed")
        if flat and blocks is not None:
            return TimmImageTower(visual, size)
        return TimmStagesTower(visual, size)
    if hasattr(visual, "transformer") and hasattr(visual, "_embeds"):
        return ClipImageTower(visual)
    raise ConfigError(
        f"image towers of type {type(visual).__name__} are not supported",
        where="--model",
        remedy="take a ViT, or a model whose tower comes from timm",
    )


def text_tower(network: Any) -> Tower:
    """The text tower of an open_clip model."""
    return ClipTextTower(network)
