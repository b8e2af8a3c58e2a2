#!/usr/bin/env python
"""A peer trained through the backbone, on the pictures EdgeLadder would train on.

    tools/bench/peers/run.py --method coop --model ViT-B/16 --pretrained weights.pt \
        --data pictures.zip --shots 16 --seed 0

Host only (torch, open_clip). The same pictures, shots and seeds as `edgeladder train` and
tools/bench/fewshot.py. Prints one JSON object: accuracy, zero-shot accuracy, seconds of training,
seconds a step (and of CPU, which other work on the machine changes less), and the process's peak
resident memory. One method a process, so that the peak is its own. `--model nano` is the model that
ships; it has no image blocks that take prompts, so CoOp alone runs on it. `--model nano-vit
--pretrained FILE` has them (tools/nano/build). `--pretrained none` runs
an untrained model: times and memory mean something, accuracies do not; `--steps 3` stops early and
does not test.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from edgeladder.host.model.backbone import LOCAL_MODELS, load_backbone  # noqa: E402
from edgeladder.runtime.pictures.dataset import Dataset, Picture, open_data, split  # noqa: E402
from edgeladder.runtime.towers.tokens import Tokenizer  # noqa: E402
from tools.bench.peers.methods import METHODS, CoOp, Recipe, Tokenize  # noqa: E402
from tools.bench.peers.towers import freeze, image_features, text_features  # noqa: E402

_TEST_BATCH = 32


def epochs_of(recipe: Recipe, shots: int) -> int:
    """The paper's number of epochs for so many shots."""
    epochs: dict[int, int] = recipe.epochs
    return epochs[max(k for k in epochs if k <= max(shots, min(epochs)))]


def train(
    method: torch.nn.Module,
    pixels: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    most: int | None = None,
) -> tuple[int, float]:
    """SGD with a cosine schedule, momentum 0.9, decay 5e-4, as the three papers have it.

    Args:
        forward: logits of rows of `pixels`; None: the method's own.
        most: steps after which to stop.

    Returns:
        Steps and seconds.
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
    started, done = time.perf_counter(), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=chance).split(batch):
            loss = functional.cross_entropy(logits(pixels[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == most:
                return done, time.perf_counter() - started
    return done, time.perf_counter() - started


def read(pictures: list[Picture], dataset: Dataset, preprocess: Any) -> tuple[Tensor, Tensor]:
    """Pixels (n, 3, S, S) and labels (n,), in open_clip's evaluation view."""
    import io

    from PIL import Image

    views = [preprocess(Image.open(io.BytesIO(p.read())).convert("RGB")) for p in pictures]
    return torch.stack(views), torch.from_numpy(dataset.labels(pictures).astype(np.int64))


def open_model(name: str, pretrained: str | None) -> tuple[Any, Any, Tokenize]:
    """A frozen CLIP, its evaluation view of a picture, its tokenizer.

    Args:
        name: open_clip's, in OpenAI's spelling too, or one of edgeladder's own.
        pretrained: a file of weights, `none` for random ones, None for those that ship.
    """
    import open_clip

    if name not in LOCAL_MODELS:
        spelt = name.replace("/", "-")
        file = None if pretrained == "none" else pretrained
        clip, _, preprocess = open_clip.create_model_and_transforms(spelt, pretrained=file)
        return freeze(clip), preprocess, open_clip.get_tokenizer(spelt)
    from edgeladder.host.model import nano_model as nano

    clip = load_backbone(name, pretrained).model
    view = open_clip.transform.PreprocessCfg(**clip.visual.preprocess_cfg)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer").mkdir()
        tokenizer = Tokenizer.from_record(
            nano.write_tokenizer(Path(folder) / "tokenizer"), Path(folder)
        )
    preprocess = open_clip.transform.image_transform_v2(view, is_train=False)
    return freeze(clip), preprocess, lambda texts: torch.from_numpy(tokenizer.encode(list(texts)))


def accuracy(logits: list[Tensor], labels: Tensor) -> float:
    """Share of pictures whose class has the highest logit."""
    return float((torch.cat(logits).argmax(1) == labels).float().mean())


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", choices=list(METHODS), required=True)
    parser.add_argument(
        "--model", default="ViT-B/16", help="open_clip's name of a ViT, nano or nano-vit"
    )
    parser.add_argument("--pretrained", default="none", help="file of weights, or none")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None, help="instead of the paper's")
    parser.add_argument("--steps", type=int, default=None, help="stop there and do not test")
    parser.add_argument(
        "--images-once",
        action="store_true",
        help="CoOp: compute image features once, which changes no number but time and memory",
    )
    parser.add_argument("--test-per-class", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def main() -> None:
    """Train, test, tell."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    weights = None if arguments.model == "nano" else arguments.pretrained
    clip, preprocess, tokenize = open_model(arguments.model, weights)
    dataset = open_data(arguments.data)
    support, tested = split(dataset, arguments.shots, arguments.seed)
    if arguments.test_per_class is not None:
        kept: dict[str, list[Picture]] = {}
        for picture in tested:
            kept.setdefault(picture.label, []).append(picture)
        tested = [p for group in kept.values() for p in group[: arguments.test_per_class]]
    method = METHODS[arguments.method](clip, tokenize, dataset.class_names)
    pixels, labels = read(support, dataset, preprocess)
    forward = None
    if arguments.images_once and isinstance(method, CoOp):
        forward = method.classify
        with torch.no_grad():
            pixels = torch.cat([image_features(clip, part) for part in pixels.split(_TEST_BATCH)])
    epochs = arguments.epochs or epochs_of(method.recipe, arguments.shots)
    busy = time.process_time()
    steps, seconds = train(
        *(method, pixels, labels, epochs, arguments.seed), forward=forward, most=arguments.steps
    )
    result = {
        "method": arguments.method,
        "model": arguments.model,
        "pretrained": "shipped" if arguments.model == "nano" else arguments.pretrained,
        "data": arguments.data.name,
        "shots": arguments.shots,
        "seed": arguments.seed,
        "epochs": epochs,
        "steps": steps,
        "train_seconds": round(seconds, 2),
        "seconds_per_step": round(seconds / steps, 4),
        "cpu_seconds_per_step": round((time.process_time() - busy) / steps, 4),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "trained_parameters": sum(p.numel() for p in method.parameters()),
    }
    if arguments.steps is None:
        result |= test(method, clip, tokenize, dataset, tested, preprocess)
    print(json.dumps(result))


def test(
    method: torch.nn.Module,
    clip: Any,
    tokenize: Tokenize,
    dataset: Dataset,
    tested: list[Picture],
    preprocess: Any,
) -> dict[str, float]:
    """Accuracy tuned and zero-shot, of `a photo of a NAME.`."""
    tuned, plain, truth = [], [], []
    with torch.no_grad():
        text = text_features(clip, tokenize([f"a photo of a {n}." for n in dataset.class_names]))
        for start in range(0, len(tested), _TEST_BATCH):
            views, answers = read(tested[start : start + _TEST_BATCH], dataset, preprocess)
            truth.append(answers)
            tuned.append(method(views))
            plain.append(image_features(clip, views) @ text.T)
    answers = torch.cat(truth)
    return {"accuracy": accuracy(tuned, answers), "zero_shot": accuracy(plain, answers)}


if __name__ == "__main__":
    main()
