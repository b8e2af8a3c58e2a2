"""The whole recipe: `tools/nano/build [--work FOLDER] [--ship]`.

Everything slow is kept under the work folder and not done twice: MiniLM's vectors, the pictures'
features and the checkpoints. `--ship` writes what the package carries. `--tower vit-tiny --weights
VIT.npz --out FILE.safetensors` makes nano-vit, which only measures and never ships.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from edgeladder.host.model import nano_model as nano
from tools.nano import vit
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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; options that do not belong to the tower end it with code 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".nano"))
    parser.add_argument("--tower", choices=("lite0", "vit-tiny"), default="lite0")
    parser.add_argument("--weights", type=Path, help="vit-tiny's: an .npz under timm's names")
    parser.add_argument("--out", type=Path, help="vit-tiny: the .safetensors to write")
    parser.add_argument("--ship", action="store_true", help="lite0: write into edgeladder/_nano")
    parser.add_argument("--threads", type=int, default=2)
    for field in fields(Settings):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind)
    given = parser.parse_args(arguments)
    own = (given.weights, given.out)
    if given.tower == "vit-tiny" and (None in own or given.ship):
        parser.error("--tower vit-tiny needs --weights and --out, and never ships")
    if given.tower == "lite0" and own != (None, None):
        parser.error("--weights and --out belong to --tower vit-tiny")
    return given


def main() -> None:
    """Train, and write what is asked for."""
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    work = given.work.resolve()
    chosen = {f.name: getattr(given, f.name) for f in fields(Settings)}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if given.tower == "vit-tiny":
        settings = replace(vit.SETTINGS, **chosen)
        vit.write(vit.make(given.weights, settings), settings, given.out)
        return
    settings = replace(Settings(), **chosen)
    network = train(work, settings)
    if given.ship:
        ship(work, network, settings)


if __name__ == "__main__":
    main()
