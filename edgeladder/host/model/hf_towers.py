"""RoBERTa and XLM-RoBERTa of the transformers library as text towers, inside open_clip.

Liu et al., arXiv:1907.11692; Conneau et al., arXiv:1911.02116. Blocks norm after each branch, look
both ways, and hide padding; the mean over all tokens is pooled, special ones among them.
"""

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
    Call,
    Piece,
    Tower,
    chain,
)
from edgeladder.host.model.supported import ENCODERS
from edgeladder.host.model.taps import TextSelector, TextTap


class RobertaTower(Tower):
    """open_clip's HFTextEncoder around a RoBERTa."""

    source = "tokens"

    def __init__(self, text: Any, context_length: int):
        """A tower.

        Args:
            text: open_clip's HFTextEncoder.
            context_length: tokens of a text, which the tokenizer pads to.

        Raises:
            ConfigError: an encoder of another make.
        """
        self.text, self.encoder, self.config = text, text.transformer, text.config
        pooler = type(text.pooler).__name__
        plain = getattr(self.config, "position_embedding_type", "absolute") == "absolute"
        if self.config.model_type not in ENCODERS or pooler != "MeanPooler" or not plain:
            raise ConfigError(
                f"text towers of transformers' {self.config.model_type}, pooled by {pooler}, are "
                "not supported",
                where="--model",
                remedy="take a model with a RoBERTa, or with open_clip's own text transformer",
            )
        if self.config.hidden_act != "gelu":
            raise ConfigError(
                f"a text tower with {self.config.hidden_act} is not supported", where="--model"
            )
        self.blocks = len(self.encoder.encoder.layer)
        self.pad = int(self.config.pad_token_id)
        most = int(self.config.max_position_embeddings) - self.pad - 1
        self.size = min(context_length, most)

    def width(self, block: int) -> int:
        return int(self.config.hidden_size)

    def sample(self) -> Tensor:
        """One text that ends half way, and one that is full."""
        generator = torch.Generator().manual_seed(0)
        last = min(int(self.config.vocab_size), 256)
        tokens = torch.randint(3, last, (2, self.size), generator=generator)
        tokens[:, 0], tokens[1, -1] = int(self.config.bos_token_id), int(self.config.eos_token_id)
        tokens[0, self.size // 2] = int(self.config.eos_token_id)
        tokens[0, self.size // 2 + 1 :] = self.pad
        return tokens

    def _stem(self, config: TapConfig) -> nn.Module:
        embeddings, pad = self.encoder.embeddings, self.pad

        def stem(owner: Any, tokens: Tensor) -> Any:
            words = (tokens != pad).long()
            place = torch.cumsum(words, 1) * words + pad  # positions are counted from padding's
            hidden = owner.words(tokens) + owner.kind + owner.places(place)
            padding = ((1.0 - words.float()) * PADDED).unsqueeze(1)
            return owner.norm(hidden), *owner.selector(tokens), padding

        first = nn.Module()
        first.words, first.places = embeddings.word_embeddings, embeddings.position_embeddings
        first.norm = embeddings.LayerNorm
        first.register_buffer("kind", embeddings.token_type_embeddings.weight[0].detach())
        first.selector = TextSelector("mean", None, pad, 1, config)
        return Call(first, stem)

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        def tail(owner: Any, hidden: Tensor, pool: Tensor) -> Tensor:
            projected: Tensor = owner.projection(torch.matmul(pool, hidden).squeeze(1))
            return projected

        last = nn.Module()
        last.projection = self.text.proj
        heads = int(self.config.num_attention_heads)
        return chain(
            self.source,
            self._stem(config),
            [PostNormBlock(layer, heads) for layer in self.encoder.encoder.layer],
            Call(last, tail),
            ["embedding"],
            {tap.block: TextTap() for tap in taps},
            more=PADDED_TEXT,
        )

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        found = self.text(batch)
        return {"embedding": found[0] if isinstance(found, tuple) else found}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        words = (batch != self.pad).long()
        found = self.encoder(input_ids=batch, attention_mask=words, output_hidden_states=True)
        result = self.whole(batch)
        selector = TextSelector("mean", None, self.pad, 1, config)(batch)[1]
        for tap in taps:
            result[tap.name] = TextTap()(found.hidden_states[tap.block + 1], selector)
        return result


class PostNormBlock(nn.Module):
    """A layer of BERT's kind by its own modules, its attention written out."""

    def __init__(self, layer: Any, heads: int):
        super().__init__()
        attention = layer.attention
        self.query, self.key, self.value = (
            getattr(attention.self, role) for role in ("query", "key", "value")
        )
        self.mixed, self.first_norm = attention.output.dense, attention.output.LayerNorm
        self.up, self.down = layer.intermediate.dense, layer.output.dense
        self.second_norm = layer.output.LayerNorm
        self.heads = heads

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        """(N, T, W) and what is added to the scores (N, 1, 1, T) -> (N, T, W)."""
        length, width = x.shape[1], x.shape[2]
        size = width // self.heads
        query, key, value = (
            layer(x).reshape(-1, length, self.heads, size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (query * size**-0.5) @ key.transpose(-1, -2) + attn_mask
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(-1, length, width)
        x = self.first_norm(self.mixed(mixed) + x)
        fed: Tensor = self.second_norm(self.down(functional.gelu(self.up(x))) + x)
        return fed
