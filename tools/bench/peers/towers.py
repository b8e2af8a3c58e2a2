"""open_clip's CLIPs, frozen, with learnable tokens let into their blocks.

Text prompts: any model whose text tower is open_clip's causal transformer (OpenAI's family, nano).
Image prompts: those whose image tower is open_clip's VisionTransformer, or timm's (nano-vit).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.errors import ConfigError


def freeze(clip: nn.Module) -> nn.Module:
    """No parameter of CLIP trains; dropout and the like are off."""
    for parameter in clip.parameters():
        parameter.requires_grad_(False)
    return clip.eval()


def image_features(clip: nn.Module, pixels: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
    """Unit embeddings (B, D); prompts[k] (m, W) are further tokens of block k.

    They are put behind the patches before block k and taken away again after it (VPT-deep,
    arXiv:2203.12119); blocks beyond the last prompt keep the last one's outputs (MaPLe).
    """
    visual = clip.visual
    if not prompts:
        return functional.normalize(visual(pixels), dim=-1)
    state = _embed(visual, pixels)  # (B, T, W)
    tokens = state.shape[1]
    for number, block in enumerate(image_blocks(clip)):
        if number < len(prompts):
            prompt = prompts[number].unsqueeze(0).expand(len(pixels), -1, -1)
            state = torch.cat([state[:, :tokens], prompt], 1)
        state = block(state)
    return functional.normalize(_read_out(visual, state[:, :tokens]), dim=-1)


def image_blocks(clip: nn.Module) -> nn.ModuleList | nn.Sequential:
    """The image tower's blocks, which take prompts.

    Raises:
        ConfigError: the tower has no blocks over tokens, or mixes them by their place in the row.
    """
    visual = clip.visual
    trunk = getattr(visual, "trunk", None)
    blocks: nn.ModuleList | nn.Sequential | None = None
    if trunk is not None and _is_vit(trunk):
        blocks = trunk.blocks
    elif trunk is None and hasattr(visual, "transformer"):
        blocks = visual.transformer.resblocks
    if blocks is None:
        raise ConfigError(
            f"the image tower {type(trunk or visual).__name__} takes no prompts",
            where="--model",
            remedy="take a ViT, such as ViT-B/16 or nano-vit, or --method coop",
        )
    return blocks


def image_width(clip: nn.Module) -> int:
    """Channels of a token of the image tower."""
    visual = clip.visual
    trunk = getattr(visual, "trunk", None)
    return int(trunk.embed_dim if trunk is not None else visual.class_embedding.shape[0])


def _is_vit(trunk: nn.Module) -> bool:
    """timm's VisionTransformer; Eva's blocks want a rotary embedding of the patches alone."""
    return all(hasattr(trunk, name) for name in ("_pos_embed", "norm_pre")) and not getattr(
        trunk, "rope", None
    )


def _embed(visual: nn.Module, pixels: Tensor) -> Tensor:
    """(B, T, W): what the first block reads."""
    trunk = getattr(visual, "trunk", None)
    state: Tensor
    if trunk is None:
        state = visual._embeds(pixels)
    else:
        state = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
    return state


def _read_out(visual: nn.Module, state: Tensor) -> Tensor:
    """(B, T, W) after the last block -> embeddings (B, D)."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        read: Tensor = visual.head(trunk.forward_head(trunk.norm(state)))
        return read
    pooled, _ = visual._pool(state)
    if visual.proj is not None:
        pooled = pooled @ visual.proj
    found: Tensor = pooled
    return found


def text_features(clip: nn.Module, ids: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
    """Unit embeddings (C, D); prompts[k] (m, W) replace tokens 1..m of block k's input.

    Args:
        ids: (C, L) token ids whose tokens 1..m are place holders, so that the end of text lies
            where it would.
    """
    tower = text_tower(clip)
    state = tower.token_embedding(ids)
    if prompts:
        state = _replace(state, prompts[0])
    state = state + tower.positional_embedding
    for number, block in enumerate(tower.transformer.resblocks):
        if 0 < number < len(prompts):
            state = _replace(state, prompts[number])
        state = block(state, attn_mask=tower.attn_mask)
    state = tower.ln_final(state)
    # the end of text has the highest id of all
    pooled = state[torch.arange(len(ids)), ids.argmax(-1)]
    projection = tower.text_projection
    projected = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
    return functional.normalize(projected, dim=-1)


def text_tower(clip: nn.Module) -> nn.Module:
    """The text transformer: open_clip's CLIP is it itself, its CustomTextCLIP holds it."""
    return getattr(clip, "text", clip)


def _replace(state: Tensor, prompt: Tensor) -> Tensor:
    given = prompt.unsqueeze(0).expand(len(state), -1, -1)
    return torch.cat([state[:, :1], given, state[:, 1 + len(prompt) :]], 1)
