"""Making nano: the text tower learns MiniLM's vectors; the rest is written down in closed form."""

from __future__ import annotations

import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.host.model import nano_model as nano
from tools.nano import words as text_data
from tools.nano.pictures import features
from tools.nano.project import train_projections
from tools.nano.settings import Checkpoint, Settings, anneal
from tools.nano.teacher import efficientnet


def targets(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MiniLM's (n, 384) -> centred, the leading 128 directions, unit length; mean and basis."""
    mean = vectors.mean(0)
    centred = vectors - mean
    values, directions = np.linalg.eigh(centred.T @ centred)
    basis = directions[:, np.argsort(values)[::-1][: nano.PART]]
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
    filler[:, : nano.PART] += vectors
    for word in (*_SILENT, "[START]", "[END]", "[PAD]", "[UNK]"):
        row = filler[words.index(word)]
        row[: nano.PART], row[nano.PART :] = 0.0, row[nano.PART :] * 10
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
    text.text_projection.weight.copy_(torch.eye(nano.PART, nano.WIDTH))
    text.text_projection.bias.zero_()


_LATER = ("balance", "kinds", "compare.weight", "project.weight", "project.bias")
_SILENT = ["a", "an", "the", "of", "photo", "picture", "it", "##ap", ".", "-", ",", "'"]


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
    for name in _LATER:
        text.text_projection.get_parameter(name).requires_grad_(False)
    parameters = [p for p in text.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.text_rate, weight_decay=0.01)
    choice = random.Random(0)
    checkpoint = Checkpoint(work / "text.pt", _text_key(settings), optimizer, text=text)
    for step in range(checkpoint.resume(), settings.text_steps):
        choice.seed(step)  # a resumed run sees what an uninterrupted one would
        picked = [choice.randrange(len(texts)) for _ in range(settings.text_batch)]
        written = [choice.choice(text_data.TEMPLATES).replace("{}", texts[i]) for i in picked]
        found = pooled_text(text, library, written)
        head = text.text_projection
        found = functional.linear(found, head.weight, head.bias)
        loss = 1 - functional.cosine_similarity(found, wanted[picked]).mean()
        anneal(optimizer, settings.text_rate, step, settings.text_steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 25 == 0 or step == settings.text_steps - 1:
            print(f"text: step {step}, cosine {1 - loss.item():.3f}", flush=True)
        if step % 50 == 49 or step == settings.text_steps - 1:
            checkpoint.save(step + 1)
    text.requires_grad_(False)


def pooled_text(text: Any, library: Any, written: list[str]) -> Tensor:
    """(n, W): what the text projection reads; padding that no text reaches is left out."""
    ids = torch.from_numpy(text_data.encode(library, written))
    ids = ids[:, : int((ids != 0).sum(1).max())]
    hidden, _ = text._embeds(ids)
    hidden = text.transformer(hidden, attn_mask=text.attn_mask[: ids.shape[1], : ids.shape[1]])
    return text.ln_final(hidden[torch.arange(len(ids)), ids.argmax(1)])


def class_vectors(work: Path) -> tuple[Tensor, Tensor]:
    """(1000, 128) twice, unit length: of all names of ImageNet's classes, and of the first."""
    _, texts, vectors = text_data.vectors(work)
    wanted = targets(vectors)[0].astype(np.float32)
    place = {name: index for index, name in enumerate(texts)}
    rows = [wanted[[place[name] for name in names]] for names in text_data.class_lemmas()]
    together = torch.from_numpy(np.stack([row.mean(0) for row in rows]))
    return functional.normalize(together, dim=-1), torch.from_numpy(np.stack([r[0] for r in rows]))


def write_heads(network: Any, classifier: nn.Linear, names: Tensor, settings: Settings) -> None:
    """ImageNet's head, the vectors of its class names, and how alike its classes look."""
    rows = classifier.weight - classifier.weight.mean(0)
    left, sizes, _ = torch.linalg.svd(functional.normalize(rows, dim=-1), full_matrices=False)
    kinds = left[:, : nano.PART] * sizes[: nano.PART]  # kinds @ kinds.T: cosines of the rows
    image: Any = network.visual.head[0]
    text: Any = network.text.text_projection
    shares = [settings.name_share, settings.kind_share]
    with torch.no_grad():
        image.classify.weight.copy_(classifier.weight)
        image.classify.bias.copy_(classifier.bias)
        image.names.copy_(names)
        text.compare.weight.copy_(names * settings.sharpness)
        for head in (image, text):
            head.kinds.copy_(kinds)
            head.balance.copy_(torch.tensor([*shares, 1 - sum(shares)]))
        network.logit_scale.fill_(math.log(settings.logit_scale))


def train(work: Path, settings: Settings) -> nn.Module:
    """The whole recipe; what is done already under `work` is not done again."""
    words, _, _ = text_data.vectors(work)
    network: Any = nano.build(len(words))
    teacher: Any = efficientnet()
    own = teacher.state_dict()
    network.visual.trunk.load_state_dict(
        {name: value for name, value in own.items() if not name.startswith("classifier")}
    )
    train_text(network, work, settings)
    names = class_vectors(work)
    write_heads(network, teacher.classifier, names[0], settings)
    train_projections(network, teacher.classifier, work, settings, names, features(work))
    done: nn.Module = network.eval()
    return done


def _text_key(settings: Settings) -> str:
    # without the number of steps: more of them go on from where fewer stopped
    names = ("text_batch", "text_rate")
    values = {name: value for name, value in asdict(settings).items() if name in names}
    return nano.recipe_digest(values)
