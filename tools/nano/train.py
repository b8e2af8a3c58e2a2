"""Training nano: the text tower learns MiniLM's vectors, then both sides learn the head's view."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.host.model import nano
from tools.nano import words as text_data
from tools.nano.features import features
from tools.nano.teacher import efficientnet


@dataclass(frozen=True)
class Settings:
    """What the shipped weights were made with."""

    pictures: int = 5000  # unlabelled, for the KL
    text_steps: int = 100
    text_batch: int = 128
    text_rate: float = 1e-3
    align_steps: int = 500
    align_batch: int = 512
    align_rate: float = 2e-3
    align_decay: float = 0.02  # only 1,000 texts: the map from words must stay plain
    prototypes: float = 0.5  # weight of the head's classifier rows as targets
    scale: float = 20.0  # of the first half's cosine in the KL
    temperature: float = 1.0  # of the head's softmax, in the KL's target
    conse_temperature: float = 1.0  # of the head's softmax, in the second half
    balance: float = 0.5  # the first half's part of the score
    logit_scale: float = 30.0


def targets(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MiniLM's (n, 384) -> centred, the leading 128 directions, unit length; mean and basis."""
    mean = vectors.mean(0)
    centred = vectors - mean
    values, directions = np.linalg.eigh(centred.T @ centred)
    basis = directions[:, np.argsort(values)[::-1][: nano.HALF]]
    found = centred @ basis
    return found / np.linalg.norm(found, axis=1, keepdims=True), mean, basis


def start_text(
    text: Any, embedding: np.ndarray, words: list[str], known: dict[str, np.ndarray]
) -> None:
    """A text as the mean of its words' vectors: near the goal before the first step.

    A word's first 128 channels are its own target; a piece that is no text of its own gets them
    from MiniLM's word embedding by ridge regression. Words of the templates say nothing at first:
    they lie in the other channels. The first block attends evenly and hands on what it reads.
    """
    table = embedding.astype(np.float32)
    table = (table - table.mean(0)) / table.std()
    rows = [index for index, word in enumerate(words) if word in known]
    wanted = np.stack([known[words[index]] for index in rows])
    square = table[rows].T @ table[rows] + 0.1 * len(rows) * np.eye(table.shape[1])
    vectors = table @ np.linalg.solve(square, table[rows].T @ wanted)
    vectors[rows] = wanted
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    filler = np.random.default_rng(0).normal(size=(len(words), nano.WIDTH)) * 0.02
    filler[:, : nano.HALF] += vectors
    for word in (*_SILENT, "[START]", "[END]", "[PAD]", "[UNK]"):
        row = filler[words.index(word)]
        row[: nano.HALF], row[nano.HALF :] = 0.0, row[nano.HALF :] * 10
    filler[words.index("[END]")] = 0.0  # what is read there is what attention brings
    text.token_embedding.weight.copy_(torch.from_numpy(filler.astype(np.float32)))
    nn.init.normal_(text.positional_embedding, std=0.001)
    for block in text.transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight[: 2 * nano.WIDTH], std=0.02)
        nn.init.normal_(block.attn.out_proj.weight, std=0.005)
        nn.init.normal_(block.mlp.c_proj.weight, std=0.005)
    first = text.transformer.resblocks[0].attn
    first.in_proj_weight[2 * nano.WIDTH :].copy_(torch.eye(nano.WIDTH))
    first.out_proj.weight.copy_(torch.eye(nano.WIDTH))
    half = text.text_projection.weight[nano.HALF :]
    half.copy_(torch.eye(nano.HALF, nano.WIDTH))
    text.text_projection.bias.zero_()


_SILENT = "a an the of photo picture it ##ap . - , '".split(" ")


def train_text(network: Any, work: Path, settings: Settings) -> None:
    """Cosine to MiniLM's vectors, whatever is written around a name."""
    words, texts, vectors = text_data.vectors(work)
    wanted = torch.from_numpy(targets(vectors)[0].astype(np.float32))
    library = nano.tokenizer(words)
    text = network.text
    with torch.no_grad():
        own = dict(zip(texts, wanted.numpy(), strict=True))
        start_text(text, np.load(work / "vectors.npz")["embedding"], words, own)
    text.requires_grad_(True)
    text.text_projection.balance.requires_grad_(False)
    parameters = [p for p in text.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.text_rate, weight_decay=0.01)
    choice = random.Random(0)
    path, done = work / "text.pt", 0
    if path.is_file():
        stored = torch.load(path, weights_only=True)
        if stored["settings"] == _text_key(settings):
            text.load_state_dict(stored["text"])
            optimizer.load_state_dict(stored["optimizer"])
            done = stored["step"]
    for step in range(done, settings.text_steps):
        choice.seed(step)  # a resumed run sees what an uninterrupted one would
        picked = [choice.randrange(len(texts)) for _ in range(settings.text_batch)]
        written = [choice.choice(text_data.TEMPLATES).replace("{}", texts[i]) for i in picked]
        found = pooled_text(text, library, written)
        found = functional.linear(
            found, text.text_projection.weight[nano.HALF :], text.text_projection.bias[nano.HALF :]
        )
        loss = 1 - functional.cosine_similarity(found, wanted[picked]).mean()
        _anneal(optimizer, settings.text_rate, step, settings.text_steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 25 == 0 or step == settings.text_steps - 1:
            print(f"text: step {step}, cosine {1 - loss.item():.3f}", flush=True)
        if step % 50 == 49 or step == settings.text_steps - 1:
            _save(
                path,
                {
                    "settings": _text_key(settings),
                    "text": text.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
            )
    text.requires_grad_(False)


def pooled_text(text: Any, library: Any, written: list[str]) -> Tensor:
    """(n, W): what the text projection reads; padding that no text reaches is left out."""
    ids = torch.from_numpy(text_data.encode(library, written))
    ids = ids[:, : int((ids != 0).sum(1).max())]
    hidden, _ = text._embeds(ids)
    hidden = text.transformer(hidden, attn_mask=text.attn_mask[: ids.shape[1], : ids.shape[1]])
    return text.ln_final(hidden[torch.arange(len(ids)), ids.argmax(1)])  # type: ignore[no-any-return]


def class_texts(text: Any, library: Any) -> Tensor:
    """(1000, K, W): the classes' names in every template, a few names each by turns."""
    rows = []
    with torch.no_grad():
        for names in text_data.class_lemmas():
            written = [
                template.replace("{}", names[k % len(names)])
                for k, template in enumerate(text_data.TEMPLATES)
            ]
            rows.append(pooled_text(text, library, written))
    return torch.stack(rows)


def train_align(network: Any, work: Path, settings: Settings, seen: np.ndarray) -> None:
    """Projections of both sides: KL to the head's softmax on pictures, classifier rows as pictures.

    Nothing else moves, so every step is a few products of small tables.
    """
    words, texts, vectors = text_data.vectors(work)
    library = nano.tokenizer(words)
    head = efficientnet().classifier  # type: ignore[union-attr]
    image: Any = network.visual.head[0]
    text: Any = network.text.text_projection
    pictures = torch.from_numpy(seen.astype(np.float32))
    written = class_texts(network.text, library)
    likely = functional.softmax(head(pictures) / settings.temperature, -1)
    rows = head.weight - head.weight.mean(0)
    values, directions = torch.linalg.eigh(rows.T @ rows)
    with torch.no_grad():
        basis = directions[:, values.argsort(descending=True)[: nano.HALF]]
        image.project.weight.copy_(basis.T)
        image.project.bias.copy_(-(pictures.mean(0) @ basis))
        flat = written.mean(1)
        wanted = rows @ basis
        solved = torch.linalg.lstsq(
            torch.cat([flat, torch.ones(len(flat), 1)], 1), functional.normalize(wanted, dim=-1)
        ).solution
        text.weight[: nano.HALF] = solved[:-1].T
        text.bias[: nano.HALF] = solved[-1]
    moved = [image.project.weight, image.project.bias]
    spoken = [
        text.weight[: nano.HALF].clone().requires_grad_(True),
        text.bias[: nano.HALF].clone().requires_grad_(True),
    ]
    for parameter in moved:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [*moved, *spoken], lr=settings.align_rate, weight_decay=settings.align_decay
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(settings.align_steps):
        picked = torch.randint(len(pictures), (settings.align_batch,), generator=generator)
        which = torch.randint(written.shape[1], (len(written),), generator=generator)
        said = functional.linear(written[torch.arange(len(written)), which], *spoken)
        said = functional.normalize(said, dim=-1)
        shown = functional.normalize(image.project(pictures[picked]), dim=-1)
        scores = settings.scale * shown @ said.T
        loss = functional.kl_div(
            functional.log_softmax(scores, -1), likely[picked], reduction="batchmean"
        )
        ideal = functional.normalize(functional.linear(rows, image.project.weight), dim=-1)
        alone = functional.cross_entropy(settings.scale * ideal @ said.T, torch.arange(len(rows)))
        _anneal(optimizer, settings.align_rate, step, settings.align_steps)
        optimizer.zero_grad()
        (loss + settings.prototypes * alone).backward()
        optimizer.step()
        if step % 200 == 0 or step == settings.align_steps - 1:
            print(f"align: step {step}, KL {loss.item():.3f}, rows {alone.item():.3f}", flush=True)
    with torch.no_grad():
        text.weight[: nano.HALF], text.bias[: nano.HALF] = spoken
    for parameter in moved:
        parameter.requires_grad_(False)
    set_conse(network, work, settings)


def set_conse(network: Any, work: Path, settings: Settings) -> None:
    """The second half: ImageNet's head, and MiniLM's vectors of its class names."""
    _, texts, vectors = text_data.vectors(work)
    wanted, _, _ = targets(vectors)
    place = {name: index for index, name in enumerate(texts)}
    names = np.stack(
        [wanted[[place[n] for n in lemmas]].mean(0) for lemmas in text_data.class_lemmas()]
    )
    head = efficientnet().classifier  # type: ignore[union-attr]
    image: Any = network.visual.head[0]
    balance = torch.tensor([settings.balance, 1 - settings.balance])
    with torch.no_grad():
        image.classify.weight.copy_(head.weight / settings.conse_temperature)
        image.classify.bias.copy_(head.bias / settings.conse_temperature)
        image.names.copy_(functional.normalize(torch.from_numpy(names).float(), dim=-1))
        image.balance.copy_(balance)
        network.text.text_projection.balance.copy_(balance)
        network.logit_scale.fill_(float(np.log(settings.logit_scale)))


def train(work: Path, settings: Settings) -> nn.Module:
    """The whole recipe; what is done already under `work` is not done again."""
    words, _, _ = text_data.vectors(work)
    network: Any = nano.build(len(words))
    own = efficientnet().state_dict()
    network.visual.trunk.load_state_dict(
        {name: value for name, value in own.items() if not name.startswith("classifier")}
    )
    train_text(network, work, settings)
    train_align(network, work, settings, features(work, settings.pictures))
    done: nn.Module = network.eval()
    return done


def _text_key(settings: Settings) -> str:
    # without the number of steps: more of them go on from where fewer stopped
    names = ("text_batch", "text_rate")
    values = {name: value for name, value in asdict(settings).items() if name in names}
    return nano.recipe_digest(values)


def _anneal(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """A short warm-up, a constant rate, and a straight line to zero over the last third."""
    warm, last = min(1.0, (step + 1) / 20), min(1.0, 3 * (steps - step) / steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * warm * last


def _save(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    torch.save(values, partial)
    partial.rename(path)
