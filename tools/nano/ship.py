"""The whole recipe: `tools/nano/build [--work FOLDER] [--ship]`.

Everything slow is kept under the work folder and not done twice: MiniLM's vectors and the
text tower's checkpoints. `--ship` writes what the package carries.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from edgeladder.host.model import nano_model as nano
from tools.nano import words as text_data
from tools.nano.settings import Settings
from tools.nano.train import train

WORDS = 19_000  # of the pieces trained: the rarest words go, and are read piece by piece


def prune(network: Any, words: list[str], limit: int = WORDS) -> list[str]:
    """Drop the rarest whole words' rows from the token table; returns the words that stay.

    BERT's pieces come in the order of how common they are; parts of words all stay.
    """
    whole = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 1]
    dropped = set(whole[len(whole) - max(0, len(words) - limit) :])
    kept = [index for index in range(len(words)) if index not in dropped]
    table = network.text.token_embedding
    pruned = torch.nn.Embedding(len(kept), table.embedding_dim)
    pruned.weight.requires_grad_(False).copy_(table.weight[kept])
    network.text.token_embedding = pruned
    network.text.vocab_size = network.vocab_size = len(kept)
    return [words[index] for index in kept]


def ship(work: Path, network: Any, settings: Settings) -> None:
    """Write words and weights into the package."""
    from safetensors.torch import save_file

    words = prune(network, text_data.vectors(work)[0])
    target = nano.folder()
    target.mkdir(exist_ok=True)
    (target / "words.txt").write_text("\n".join(words), encoding="utf-8")
    save_file(
        nano.narrow_weights(network),
        target / "weights.safetensors",
        metadata={"settings": json.dumps(asdict(settings), sort_keys=True)},
    )
    size = (target / "weights.safetensors").stat().st_size
    print(f"weights: {size / 1e6:.2f} MB in {target}")


def main() -> None:
    """Train, and ship where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".nano"))
    parser.add_argument("--ship", action="store_true", help="write into edgeladder/_nano")
    parser.add_argument("--threads", type=int, default=2)
    for field in fields(Settings):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    given = vars(parser.parse_args())
    work, wanted = given.pop("work").resolve(), given.pop("ship")
    torch.set_num_threads(given.pop("threads"))
    settings = Settings(**given)
    network = train(work, settings)
    if wanted:
        ship(work, network, settings)


if __name__ == "__main__":
    main()
