"""Quantized prompts: the forward pass sees what a stored adapter will hold.

QPrompt (Hao et al., arXiv:2407.10704): W_q = sigma Q((W - mu) / sigma) + mu, with the mean mu and
deviation sigma of each rung's prompts and one codebook Q for all; straight-through gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normal_codebook(bits: int) -> Tensor:
    """Quantiles of a normal distribution (2^bits,); k-means on the device takes over from there."""
    levels = (torch.arange(2**bits) + 0.5) / 2**bits
    return torch.erfinv(2 * levels - 1) * 2**0.5


def quantize(
    tokens: Tensor,
    which: int,
    codebook: Tensor,
    stored: tuple[Tensor, Tensor],
    mask: Tensor | None,
) -> Tensor:
    """Each value's nearest codebook entry, at its rung's mean and deviation: (L, m, d).

    Args:
        tokens: (L, m, d).
        which: of the sets in the statistics.
        codebook: (2^bits,), ascending.
        stored: (1,), 1 where mean and deviation are measured and 0 where they are stored; and
            what is stored of them, (sets, 2, L, 1, 1), zero where they are measured.
        mask: (L, m), 1 for kept prompts; None: all are.
    """
    live, statistics = stored
    measured = mean_of_kept(tokens, mask)
    centred = tokens - measured
    # never zero: prompts that are all alike stay as they are
    spread = torch.sqrt(mean_of_kept(centred * centred, mask) + 1e-24)
    mean = measured * live + statistics[which, 0]
    deviation = spread * live + statistics[which, 1]
    normal = (tokens - mean) / deviation
    middle = (codebook[1:] + codebook[:-1]) * 0.5
    steps = codebook[1:] - codebook[:-1]
    above = (normal.unsqueeze(-1) > middle).to(tokens.dtype)
    nearest = codebook[:1] + (above * steps).sum(-1)
    quantized = deviation * nearest + mean
    return tokens + (quantized - tokens).detach()


def mean_of_kept(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over each rung's kept prompts: (L, m, d) -> (L, 1, 1)."""
    if mask is None:
        return values.mean((1, 2), keepdim=True)
    kept = mask.unsqueeze(-1)  # (L, m, 1)
    share = kept / (kept.sum(1, keepdim=True) + 1e-12)  # a rung may have lost all of them
    return (values.mean(2, keepdim=True) * share).sum(1, keepdim=True)
