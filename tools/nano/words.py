"""What the text tower learns from: a vocabulary, texts, and MiniLM's vectors of them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.host.model.nano_model import CONTEXT
from tools.nano.teacher import MiniLM

_KEEP = re.compile(r"^(##)?([a-z]{2,}|[a-z0-9])$|^[-.,'&/]$")
# what people write around a class's name; the vector of the name is the target of them all
TEMPLATES = (
    "{}",
    "{}.",
    "a {}",
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "a photo of the {}.",
    "a picture of {}.",
)
_LEFT = (  # what is said of things
    "red",
    "blue",
    "green",
    "white",
    "black",
    "brown",
    "small",
    "large",
    "old",
    "young",
    "wooden",
    "metal",
    "plastic",
    "leather",
    "striped",
    "plain",
    "dirty",
    "clean",
    "broken",
    "wet",
    "dry",
    "open",
    "closed",
    "short",
    "long",
    "sleeved",
    "tall",
    "round",
    "flat",
    "wild",
    "tropical",
    "urban",
    "rural",
    "industrial",
    "residential",
    "ripe",
    "rotten",
    "sleeping",
    "running",
    "flying",
    "parked",
    "empty",
    "full",
)
_JOIN = ("and", "with", "in", "on", "of", "near", "without", "or", "for")


def pieces(vocabulary: list[str]) -> list[str]:
    """BERT's word pieces that occur in English class names, after `[PAD]` and `[UNK]`.

    The start and the end of a text come last: open_clip pools at the highest id.
    """
    kept = [piece for piece in vocabulary if _KEEP.match(piece)]
    return ["[PAD]", "[UNK]", *kept, "[START]", "[END]"]


def encode(library: Any, texts: list[str]) -> np.ndarray:
    """(n, CONTEXT) int64, as a device does it."""
    start, end = library.token_to_id("[START]"), library.token_to_id("[END]")
    out = np.zeros((len(texts), CONTEXT), np.int64)
    for row, encoding in zip(out, library.encode_batch(texts), strict=True):
        ids = [start, *encoding.ids[: CONTEXT - 2], end]
        row[: len(ids)] = ids
    return out


def class_lemmas() -> list[list[str]]:
    """The names of ImageNet's 1,000 classes, in the head's order."""
    lemmas = _table("imagenet_synset_to_lemma.txt")
    synsets = _lines("imagenet_synsets.txt")
    return [_split(lemmas[synset])[:3] for synset in synsets]


def texts(words: list[str], count: int = 6000) -> list[str]:
    """Names of WordNet's things, common words, and phrases made of both; `count` of each.

    ImageNet's own 1,000 classes are all there.
    """
    choice = random.Random(0)
    names = [
        name
        for line in _table("imagenet_synset_to_lemma.txt").values()
        for name in _split(line)[:1]
        if len(name) < 24
    ]
    names = choice.sample(names, count)
    # BERT's word pieces come in the order of how common they are
    plain = [word for word in words if word.isalpha() and len(word) > 2][: 3 * count // 2]
    short = [name for name in names if len(name) < 14]
    made = []
    for _ in range(count // 2):
        one, two = choice.choice(short), choice.choice(plain)
        made.append(
            choice.choice(
                [
                    f"{choice.choice(_LEFT)} {choice.choice([one, two])}",
                    f"{choice.choice(_LEFT)}-{two} {one}",
                    f"{one} {choice.choice(_JOIN)} {two}",
                    f"{two} {one}",
                ]
            )
        )
    own = [name for lemmas in class_lemmas() for name in lemmas]
    return sorted({*names, *plain, *made, *own})


def vectors(work: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(word pieces, texts, MiniLM's unit vectors (n, 384)); computed once."""
    target = work / "vectors.npz"
    if not target.is_file():
        work.mkdir(parents=True, exist_ok=True)
        teacher = MiniLM()
        known = teacher.tokenizer.get_vocab()
        words = pieces(sorted(known, key=lambda piece: known[piece]))
        found = texts(words)
        partial = work / "vectors.part.npz"
        np.savez(
            partial,
            words=json.dumps(words),
            texts=json.dumps(found),
            vectors=teacher.encode(found).astype(np.float16),
            embedding=_embedding(teacher, known, words),
        )
        partial.rename(target)
    stored = np.load(target)
    return (
        json.loads(str(stored["words"])),
        json.loads(str(stored["texts"])),
        stored["vectors"].astype(np.float32),
    )


def _embedding(teacher: MiniLM, known: dict[str, int], words: list[str]) -> np.ndarray:
    table = teacher.values["embeddings.word_embeddings.weight"].numpy()
    alias = {"[START]": "[CLS]", "[END]": "[SEP]"}
    rows: np.ndarray = table[[known[alias.get(word, word)] for word in words]]
    return rows.astype(np.float16)


def _split(line: str) -> list[str]:
    return [name.strip().lower() for name in line.split(",") if name.strip()]


def _info() -> Path:
    import timm

    return Path(timm.__file__).parent / "data" / "_info"


def _lines(name: str) -> list[str]:
    return (_info() / name).read_text(encoding="utf-8").split()


def _table(name: str) -> dict[str, str]:
    rows = (_info() / name).read_text(encoding="utf-8").splitlines()
    return dict(row.split("\t", 1) for row in rows if "\t" in row)
