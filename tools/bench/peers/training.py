"""How the peers are trained: SGD over few pictures, as their papers have it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tools.bench.peers.methods import Recipe


def epochs_of(recipe: Recipe, shots: int) -> int:
    """The paper's number of epochs for so many shots."""
    epochs: dict[int, int] = recipe.epochs
    return epochs[max(k for k in epochs if k <= max(shots, min(epochs)))]


@dataclass(frozen=True)
class Trained:
    """What a training took and how far it came."""

    steps: int
    all_steps: int  # of the recipe
    seconds: float
    cpu_seconds: float
    first_loss: float  # mean over the first epoch
    last_loss: float  # mean over the last one


def train(
    method: torch.nn.Module,
    inputs: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    most: int | None = None,
) -> Trained:
    """SGD with a cosine schedule, momentum 0.9, decay 5e-4, as the three papers have it.

    Args:
        method: one of `METHODS`.
        inputs: (n, ...) of which `forward` gives logits.
        labels: (n,).
        epochs: over all of them.
        seed: of the order.
        forward: logits of rows of `inputs`; None: the method's own.
        most: steps after which to stop.
    """
    logits = forward or method
    recipe: Recipe = method.recipe
    batch = min(recipe.batch, len(labels))
    steps = epochs * math.ceil(len(labels) / batch)
    optimizer = torch.optim.SGD(
        method.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    chance = torch.Generator().manual_seed(seed)
    started, busy = time.perf_counter(), time.process_time()
    losses: list[float] = []
    per_epoch = math.ceil(len(labels) / batch)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=chance).split(batch):
            if len(losses) == most:
                break
            loss = functional.cross_entropy(logits(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return Trained(
        len(losses),
        steps,
        time.perf_counter() - started,
        time.process_time() - busy,
        float(np.mean(losses[:per_epoch])),
        float(np.mean(losses[-per_epoch:])),
    )
