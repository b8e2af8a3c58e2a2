"""Where the text's channels enter a trunk that was cut from image blocks: `ladder.align`.

The trunk's coordinates are the image tower's kept channels. The text tower has other channels, in
an order of their own, so its `down` map decides what the trunk takes them for. The two towers meet
in CLIP's embedding space alone; near a typical input each tower's last part is a linear map,
z ~ R x + const, with the read-outs R_i (D, W_i) and R_t (D, W_t). Every dimension of the embedding
thus pairs a direction of the image's channels with one of the text's, without any picture:

    select           own channels that the text blocks read most, in their order
    semi_orthogonal  random directions of equal length, as far apart as they can be
    match            to each kept channel the text channel, with its sign, whose read-out is most
                     alike (largest |cosine| first, none twice while there are enough)
    procrustes       the orthonormal M with least |R_t M - A|, A = R_i of the kept channels:
                     M = U V^T of the singular vectors of R_t^T A
    ridge            the kept coordinates that would give the text's embedding:
                     min |A y - R_t x|^2 + l |y|^2, so M = R_t^T A (A^T A + l)^-1

Each column of M ends at length 1, as a selected channel's. One M serves all taps: a residual stream
keeps its coordinates from block to block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_RIDGE = 0.01  # l, in units of the mean of A^T A's diagonal


def align(kind: str, image: Tensor, text: Tensor) -> Tensor:
    """The text's map into the trunk.

    Args:
        kind: `match`, `procrustes` or `ridge`.
        image: (D, w), the read-out of the image's kept channels.
        text: (D, W_t).

    Returns:
        (W_t, w), columns of length 1.
    """
    made = _KINDS[kind](image, text)
    return functional.normalize(made, dim=0)


def _match(image: Tensor, text: Tensor) -> Tensor:
    alike = functional.normalize(text, dim=0).T @ functional.normalize(image, dim=0)  # (W_t, w)
    made, width = torch.zeros_like(alike), alike.shape[1]
    rows = torch.ones(len(alike), 1, dtype=torch.bool)  # text channels that are free
    columns = torch.ones(1, width, dtype=torch.bool)  # kept channels without a partner
    for _ in range(width):
        if not bool(rows.any()):  # a narrower text tower: its channels serve again
            rows[:] = True
        best = torch.where(rows & columns, alike.abs(), -1.0).argmax()
        row, column = divmod(int(best), width)
        made[row, column] = 1.0 if alike[row, column] >= 0 else -1.0
        rows[row], columns[0, column] = False, False
    return made


def _procrustes(image: Tensor, text: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(text.T @ image, full_matrices=False)
    return left @ right


def _ridge(image: Tensor, text: Tensor) -> Tensor:
    gram = image.T @ image
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, image.T @ text).T


_KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "match": _match,
    "procrustes": _procrustes,
    "ridge": _ridge,
}
