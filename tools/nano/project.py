"""The embedding's third part: a learned projection on each side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.host.model import nano_model as nano
from tools.nano.settings import Checkpoint, Settings, anneal

_SCALE = 20.0  # of the scores within this part while it learns
_NOISE = 0.5  # length of what is added to a text's vector: texts other than class names lie near it
_ROWS = 0.5  # weight of the classifier's rows, taken for pictures of their class


def train_projections(
    network: Any,
    classifier: nn.Linear,
    work: Path,
    settings: Settings,
    names: tuple[Tensor, Tensor],
    pictures: np.ndarray,
) -> None:
    """KL to the classifier's softmax over the texts of its 1,000 classes, on unlabelled pictures.

    What the projection is shown of a picture is most often blurred; what it should say of it is
    what the classifier says of the sharp one.

    Args:
        network: nano, its other parts written.
        classifier: EfficientNet's, of 1,000 classes.
        work: where the checkpoint lies.
        settings: steps, batch, rate and share of blurred pictures.
        names: two (1000, 128) tables of the classes' text vectors.
        pictures: (1 + blurs, n, 1280) pooled features, the sharp ones first.
    """
    seen = torch.from_numpy(pictures)
    rows = classifier.weight - classifier.weight.mean(0)
    image: nn.Linear = network.visual.head[0].project
    text: nn.Linear = network.text.text_projection.project
    likely = functional.softmax(classifier(seen[0]), -1)
    with torch.no_grad():
        write_start(image, text, rows, seen[0].mean(0), names[0])
    parameters = [*image.parameters(), *text.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=settings.project_rate, weight_decay=0.02)
    checkpoint = Checkpoint(work / "project.pt", _key(settings), optimizer, image=image, text=text)
    for step in range(checkpoint.resume(), settings.project_steps):
        random = torch.Generator().manual_seed(step)  # resumed as if uninterrupted
        picked = torch.randint(seen.shape[1], (settings.project_batch,), generator=random)
        blur = torch.randint(1, len(seen), picked.shape, generator=random)
        blur *= torch.rand(picked.shape, generator=random) < settings.blurred
        vectors = names[int(torch.randint(2, (), generator=random))]
        noise = torch.randn(vectors.shape, generator=random) * _NOISE / vectors.shape[1] ** 0.5
        said = _unit(text(_unit(vectors + noise)))
        scores = _SCALE * _unit(image(seen[blur, picked])) @ said.T
        loss = functional.kl_div(scores.log_softmax(-1), likely[picked], reduction="batchmean")
        ideal = _unit(functional.linear(rows, image.weight))
        alone = functional.cross_entropy(_SCALE * ideal @ said.T, torch.arange(len(rows)))
        anneal(optimizer, settings.project_rate, step, settings.project_steps)
        optimizer.zero_grad()
        (loss + _ROWS * alone).backward()
        optimizer.step()
        last = step == settings.project_steps - 1
        if step % 50 == 0 or last:
            print(f"projections: step {step}, KL {loss.item():.3f}", flush=True)
        if step % 50 == 49 or last:
            checkpoint.save(step + 1)
    for parameter in parameters:
        parameter.requires_grad_(False)


def write_start(
    image: nn.Linear, text: nn.Linear, rows: Tensor, mean: Tensor, names: Tensor
) -> None:
    """The classifier's leading directions, and the ridge regression of texts to its rows.

    Args:
        image: written, from a picture's features (N, F) to (N, 128).
        text: written, from a text's vector (N, 128) to (N, 128).
        rows: (1000, F) the classifier's, centred.
        mean: (F,) of features of pictures.
        names: (1000, 128) the classes' vectors.
    """
    values, directions = torch.linalg.eigh(rows.T @ rows)
    basis = directions[:, values.argsort(descending=True)[: nano.PART]]
    image.weight.copy_(basis.T)
    image.bias.copy_(-(mean @ basis))
    square = names.T @ names + torch.eye(names.shape[1])
    text.weight.copy_(torch.linalg.solve(square, names.T @ _unit(rows @ basis)).T)
    text.bias.zero_()


def _unit(value: Tensor) -> Tensor:
    return functional.normalize(value, dim=-1)


def _key(settings: Settings) -> str:
    # the rate falls over the last third, so that the number of steps counts here
    names = ("project_steps", "project_batch", "project_rate", "blurred", "text_steps")
    return nano.recipe_digest({name: asdict(settings)[name] for name in names})
