"""Towers from timm: vision transformers cut at their blocks, other networks at their stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeladder.core.config import TapConfig
from edgeladder.core.manifest import TapRecord
from edgeladder.host.model.frozen_tower import (
    Call,
    Piece,
    TappedStage,
    Tower,
    chain,
    linear,
    norms,
)
from edgeladder.host.model.taps import ImageTap, cells


class RotatedBlock(nn.Module):
    """A block of timm's Eva with its rotary position embedding, constant at a fixed image size."""

    rope: Tensor

    def __init__(self, block: Any, rope: Tensor):
        super().__init__()
        self.block = block
        self.register_buffer("rope", rope)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, T, W) -> (N, T, W)."""
        found: Tensor = self.block(hidden, rope=self.rope)
        return found


class TimmImageTower(Tower):
    """A timm vision transformer (SigLIP, MobileCLIP-B, ViTamin, EVA-02), cut at its blocks."""

    def __init__(self, visual: Any, size: int):
        self.visual, self.trunk, self.size = visual, visual.trunk, size
        self.blocks = len(self.trunk.blocks)
        _plain(visual)

    def width(self, block: int) -> int:
        return int(self.trunk.embed_dim)

    def _taps(self, taps: list[TapRecord], config: TapConfig) -> dict[int, nn.Module]:
        side = int(self.trunk.patch_embed.grid_size[0])
        prefix = int(self.trunk.num_prefix_tokens)
        return {tap.block: ImageTap(side, prefix, config) for tap in taps}

    def _blocks(self) -> list[nn.Module]:
        """The blocks, each with its rotary embedding where the tower has one."""
        trunk = self.trunk
        with torch.no_grad():
            found = trunk._pos_embed(trunk.patch_embed(torch.zeros(1, 3, self.size, self.size)))
        rope = found[1] if isinstance(found, tuple) else None
        if rope is None:
            return list(trunk.blocks)
        mixed = bool(getattr(trunk, "rope_mixed", False))  # one embedding per block
        return [
            RotatedBlock(block, rope[index] if mixed else rope)
            for index, block in enumerate(trunk.blocks)
        ]

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        names = ["embedding", *(["embedding_pre"] if len(self.visual.head) else [])]

        def stem(owner: Any, pixels: Tensor) -> Tensor:
            found = owner._pos_embed(owner.patch_embed(pixels))
            hidden = found[0] if isinstance(found, tuple) else found
            normed: Tensor = owner.norm_pre(hidden)
            return normed

        def tail(owner: Any, hidden: Tensor) -> Any:
            pre = owner.trunk.forward_head(owner.trunk.norm(hidden))
            return (owner.head(pre), pre)[: len(names)]

        first, last = _without_blocks(self.trunk), nn.Module()
        last.trunk, last.head = _without_blocks(self.trunk), self.visual.head
        return chain(
            self.source,
            Call(first, stem),
            self._blocks(),
            Call(last, tail),
            names,
            self._taps(taps, config),
        )

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.visual(batch)}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        prefixed = self.trunk.num_prefix_tokens > 0
        _, found = self.trunk.forward_intermediates(
            batch,
            indices=[t.block for t in taps],
            output_fmt="NLC",
            return_prefix_tokens=prefixed,
        )
        modules = self._taps(taps, config)
        result = self.whole(batch)
        for tap, one in zip(taps, found, strict=True):
            tokens = torch.cat([one[1], one[0]], 1) if prefixed else one
            result[tap.name] = modules[tap.block](tokens)
        return result

    def block_weights(self, block: int) -> dict[str, Any] | None:
        return timm_block_weights(self.trunk.blocks[block])


def _plain(network: nn.Module) -> None:
    """Set a network to its plainest operators: nothing fused, nothing in place."""
    for module in network.modules():
        for option in ("fused_attn", "inplace"):
            if isinstance(getattr(module, option, None), bool):
                setattr(module, option, False)


def _without_blocks(trunk: Any) -> nn.Module:
    """The trunk sharing all its modules but the blocks, which are pieces of their own."""
    copy: nn.Module = trunk.__new__(type(trunk))
    copy.__dict__.update(trunk.__dict__)
    copy._modules = {name: part for name, part in trunk._modules.items() if name != "blocks"}
    return copy


# how timm's networks are laid out: before the stages, the stages, after them
_LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (("stem",), ("stages",), ("norm_pre",)),  # ConvNeXt
    (("stem",), ("stages",), ("final_conv",)),  # FastViT (MobileCLIP), ByobNet
    (("conv_stem", "bn1"), ("blocks",), ("conv_head", "bn2")),  # EfficientNet
    (("conv_stem", "bn1"), ("blocks",), ()),  # MobileNetV3
    (("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4"), ()),  # ResNet
)


class TimmStagesTower(Tower):
    """Any other timm tower (EfficientNet, ConvNeXt, MobileCLIP): its feature levels are blocks.

    A network of a known layout is cut at its stages, but only after a trial has shown that the
    parts in a row yield what the whole does; any other is one piece.
    """

    def __init__(self, visual: Any, size: int):
        self.visual, self.trunk, self.size = visual, visual.trunk, size
        _plain(visual)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, 3, size, size, generator=generator)
        with torch.no_grad():
            final, found = self.trunk.forward_intermediates(pixels)
            self.shapes = [tuple(one.shape[1:]) for one in found]  # (C, H, W)
            self.blocks = len(self.shapes)
            self._cut = _cut(self.trunk, pixels, final, found)

    def width(self, block: int) -> int:
        return int(self.shapes[block][0])

    def _tap(self, tap: TapRecord, config: TapConfig) -> ImageTap:
        return ImageTap(self.shapes[tap.block][1], 0, config)

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        names = ["embedding", *(["embedding_pre"] if len(self.visual.head) else [])]
        if self._cut is None:
            return [self._whole_piece(taps, config, names)]
        parts, after, levels = self._cut
        pieces, source = [], self.source
        for index, part in enumerate(parts):
            here = [tap for tap in taps if levels[tap.block] == index]
            body = TappedStage(part, [self._tap(tap, config) for tap in here])
            pieces.append(Piece([source], [f"hidden_{index}", *[t.name for t in here]], body))
            source = f"hidden_{index}"

        def tail(owner: Any, hidden: Tensor) -> Any:
            pre = owner.trunk.forward_head(owner.after(hidden))
            return (owner.head(pre), pre)[: len(names)]

        last = nn.Module()
        last.trunk, last.after, last.head = (
            _head_only(self.trunk, [*parts, after]),
            after,
            self.visual.head,
        )
        pieces.append(Piece([source], names, Call(last, tail)))
        return pieces

    def _whole_piece(self, taps: list[TapRecord], config: TapConfig, names: list[str]) -> Piece:
        indices = [tap.block for tap in taps]

        def everything(owner: Any, pixels: Tensor) -> Any:
            final, found = owner.trunk.forward_intermediates(pixels, indices=indices)
            pre = owner.trunk.forward_head(final)
            rows = [tap(cells(one)) for tap, one in zip(owner.taps, found, strict=True)]
            return (*(owner.head(pre), pre)[: len(names)], *rows)

        holder = nn.Module()
        holder.trunk, holder.head = self.trunk, self.visual.head
        holder.taps = nn.ModuleList(self._tap(tap, config) for tap in taps)
        return Piece([self.source], [*names, *[t.name for t in taps]], Call(holder, everything))

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.visual(batch)}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        _, found = self.trunk.forward_intermediates(batch, indices=[t.block for t in taps])
        result = self.whole(batch)
        for tap, one in zip(taps, found, strict=True):
            result[tap.name] = self._tap(tap, config)(cells(one))
        return result


Cut = tuple[list[nn.Module], nn.Module, list[int]]


def _cut(trunk: Any, pixels: Tensor, final: Tensor, found: list[Tensor]) -> Cut | None:
    """Parts in a row, what follows them, and after which part each feature level sits.

    None where no layout reproduces `final` and every one of `found`.
    """
    for before, between, behind in _LAYOUTS:
        if not all(isinstance(getattr(trunk, n, None), nn.Module) for n in before + between):
            continue
        if not all(isinstance(getattr(trunk, n, None), nn.Module) for n in behind):
            continue
        stem = [getattr(trunk, name) for name in before]
        stages = [getattr(trunk, name) for name in between]
        stages = list(stages[0]) if len(stages) == 1 else stages
        parts = [stem[0] if len(stem) == 1 else nn.Sequential(*stem), *stages]
        after = nn.Sequential(*[getattr(trunk, name) for name in behind])
        outputs, hidden = [], pixels
        try:
            for part in parts:
                hidden = part(hidden)
                outputs.append(hidden)
            end = after(hidden)
        except (RuntimeError, TypeError):  # modules that are called otherwise
            continue
        levels = [next((i for i, o in enumerate(outputs) if _same(o, f)), -1) for f in found]
        if _same(end, final) and -1 not in levels:
            return parts, after, levels
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5))


def _head_only(trunk: Any, parts: list[nn.Module]) -> nn.Module:
    """The trunk sharing all its modules but those that are pieces of their own."""
    gone = {id(module) for part in parts for module in part.modules()}
    copy: nn.Module = trunk.__new__(type(trunk))
    copy.__dict__.update(trunk.__dict__)
    copy._modules = {
        name: part
        for name, part in trunk._modules.items()
        if part is None
        or id(part) not in gone
        and not any(id(child) in gone for child in part.children())
    }
    return copy


def timm_block_weights(block: Any) -> dict[str, Any] | None:
    """Weights of timm's vision transformer Block by role; None for blocks of another make.

    Another make is what a rung cannot imitate: norms after or inside the branches, gated products,
    rotated queries. Layer scales are folded into what they scale.
    """
    attention, forward = getattr(block, "attn", None), getattr(block, "mlp", None)
    makes = [type(part).__name__ for part in (block, attention, forward)]
    if makes != ["Block", "Attention", "Mlp"]:
        return None
    assert attention is not None and forward is not None
    inside = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    inside.append(getattr(forward, "norm", None))
    layers = (attention.qkv, attention.proj, forward.fc1, forward.fc2)
    plain = all(part is None or isinstance(part, nn.Identity) for part in inside)
    if not plain or not all(isinstance(layer, nn.Linear) for layer in layers):
        return None
    return {
        **norms(block.norm1, block.norm2),
        **linear("qkv", attention.qkv),
        **linear("out", attention.proj, block.ls1),
        **linear("fc1", forward.fc1),
        **linear("fc2", forward.fc2, block.ls2),
        "heads": attention.num_heads,
        "activation": "gelu",
    }
