#!/usr/bin/env python
"""A peer trained through the backbone, on the pictures EdgeLadder would train on.

    tools/bench/peers/run.py --method coop --model ViT-B/16 --pretrained weights.pt \
        --data pictures.zip --shots 16 --seed 0

Host only (torch, open_clip). The same pictures, shots and seeds as `edgeladder train` and
tools/bench/fewshot.py. Prints one JSON object: accuracy, zero-shot accuracy, seconds to a tuned
model, seconds a step (and of CPU, which other work on the machine changes less), the mean loss of
the first and the last epoch, and the process's peak resident memory, in training and at all. One
method a process, so that the peak is its own. `--model nano` is the model that ships; it has no
image blocks that take prompts, so CoOp alone runs on it. `--model nano-vit --pretrained FILE` has
them (tools/nano/build). `--pretrained none` runs an untrained model: times and memory mean
something, accuracies do not; `--steps 3` stops early and does not test.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from edgeladder.host.model.backbone import load_backbone  # noqa: E402
from edgeladder.host.model.names import LOCAL_MODELS  # noqa: E402
from edgeladder.runtime.towers.tokens import Tokenizer  # noqa: E402
from tools.bench.peers.features import FeatureStore, pixels_of  # noqa: E402
from tools.bench.peers.methods import Tokenize  # noqa: E402
from tools.bench.peers.probes import ALL  # noqa: E402
from tools.bench.peers.tasks import PeerTask, open_task  # noqa: E402
from tools.bench.peers.towers import freeze, text_features  # noqa: E402
from tools.bench.peers.training import epochs_of, train  # noqa: E402

_TEST_BATCH = 32
_PREDICT_BATCH = 4
Opened = tuple[Any, Any, Tokenize]  # a frozen CLIP, its view of a picture, its tokenizer


def open_model(name: str, pretrained: str | None) -> Opened:
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


def parse_arguments(line: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", choices=list(ALL), required=True)
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
        help="CoOp, probes: compute image features once: the same numbers, less time and memory",
    )
    parser.add_argument("--features", type=Path, help="keeps plain image features, an .npz")
    parser.add_argument(
        "--base-to-new",
        action="store_true",
        help="train on the first half of the classes; test each half among its own names",
    )
    parser.add_argument("--test-per-class", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--predict", type=int, default=0, help="time predictions of so many")
    return parser.parse_args(line)


def main() -> None:
    """Train, test, tell."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    weights = None if arguments.model == "nano" else arguments.pretrained
    opened = open_model(arguments.model, weights)
    loading = {
        "load_seconds": round(time.time() - psutil.Process().create_time(), 2),
        "load_cpu_seconds": round(time.process_time(), 2),
    }
    print(json.dumps(loading | measure(arguments, opened)))


def measure(arguments: argparse.Namespace, opened: Opened) -> dict[str, Any]:
    """One method trained and tested, as the command line says."""
    torch.manual_seed(arguments.seed)
    clip, preprocess, tokenize = opened
    store = FeatureStore(clip, preprocess, arguments.features)
    task = open_task(
        arguments.data,
        arguments.shots,
        arguments.seed,
        per_class=arguments.test_per_class,
        halves=arguments.base_to_new,
    )
    kind = ALL[arguments.method]
    method = kind(clip, tokenize, task.names)
    result = {
        "method": arguments.method,
        "model": arguments.model,
        "pretrained": "shipped" if arguments.model == "nano" else arguments.pretrained,
        "data": arguments.data.name,
        "shots": arguments.shots,
        "seed": arguments.seed,
        **tune(method, task, store, arguments),
    }
    if arguments.steps is None:
        result |= test(method, store, task, tokenize)
        if task.new is not None:
            fresh = kind(clip, tokenize, task.new.names)
            fresh.load_state_dict(dict(method.named_parameters()), strict=False)
            found = test(fresh, store, task.new, tokenize)
            result |= {f"new_{name}": value for name, value in found.items()}
            result["harmonic"] = harmonic(result["accuracy"], result["new_accuracy"])
            result["zero_shot_harmonic"] = harmonic(result["zero_shot"], result["new_zero_shot"])
    if arguments.predict:
        result["predict_images_per_second"] = predicted(method, task, store, arguments.predict)
    return result | {"peak_rss_bytes": peak_rss()}


def predicted(method: torch.nn.Module, task: PeerTask, store: FeatureStore, count: int) -> float:
    """Pictures a second from their files to logits, four at a time, classes encoded before."""
    pictures = (task.tested * math.ceil(count / len(task.tested)))[:count]
    with torch.no_grad():
        logits = method.predictor()
        started = time.perf_counter()
        for start in range(0, count, _PREDICT_BATCH):
            logits(pixels_of(pictures[start : start + _PREDICT_BATCH], store.view))
    return round(count / (time.perf_counter() - started), 3)


def tune(
    method: torch.nn.Module, task: PeerTask, store: FeatureStore, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train on the support set; what it took.

    `seconds` and `cpu_seconds` are to a tuned model: pictures decoded, features computed where the
    method reads features, steps.
    """
    epochs = arguments.epochs or epochs_of(method.recipe, arguments.shots)
    forward, extra = None, (0.0, 0.0)
    loaded = psutil.Process().memory_info().rss  # interpreter, libraries, backbone
    started, busy = time.perf_counter(), time.process_time()
    if arguments.images_once and hasattr(method, "classify"):
        forward, inputs = method.classify, store.of(task.support)
        # what they cost when they were computed, now or by an earlier run
        started, busy = time.perf_counter(), time.process_time()
        extra = store.cost(len(task.support))
    else:
        inputs = pixels_of(task.support, store.view)
    trained = train(
        *(method, inputs, task.labels(task.support), epochs, arguments.seed),
        forward=forward,
        most=arguments.steps,
    )
    return {
        "epochs": epochs,
        "steps": trained.steps,
        "all_steps": trained.all_steps,
        "seconds": round(time.perf_counter() - started + extra[0], 2),
        "cpu_seconds": round(time.process_time() - busy + extra[1], 2),
        "seconds_per_step": round(trained.seconds / trained.steps, 4),
        "cpu_seconds_per_step": round(trained.cpu_seconds / trained.steps, 4),
        "first_loss": round(trained.first_loss, 4),
        "last_loss": round(trained.last_loss, 4),
        "loaded_rss_bytes": loaded,
        "train_peak_rss_bytes": peak_rss(),
        "trained_parameters": sum(p.numel() for p in method.parameters()),
    }


def peak_rss() -> int:
    """The process's peak resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def harmonic(base: float, new: float) -> float:
    """H of CoCoOp, arXiv:2203.05557: 2 b n / (b + n)."""
    return 2 * base * new / (base + new) if base + new else 0.0


def test(
    method: torch.nn.Module, store: FeatureStore, task: PeerTask, tokenize: Tokenize
) -> dict[str, float]:
    """Accuracy tuned and zero-shot, of `a photo of a NAME.`."""
    plain, truth = store.of(task.tested), task.labels(task.tested)
    with torch.no_grad():
        prompts = [f"a photo of a {name}." for name in task.names]
        text = text_features(store.clip, tokenize(prompts))
        if hasattr(method, "classify"):
            tuned = method.classify(plain)
        else:
            parts = range(0, len(task.tested), _TEST_BATCH)
            tuned = torch.cat(
                [method(pixels_of(task.tested[s : s + _TEST_BATCH], store.view)) for s in parts]
            )
    return {
        "accuracy": float((tuned.argmax(1) == truth).float().mean()),
        "zero_shot": float(((plain @ text.T).argmax(1) == truth).float().mean()),
    }


if __name__ == "__main__":
    main()
