#!/usr/bin/env python3
"""What each kind of prompts costs: operations of the ladder's graphs, node by node.

    python -m tools.bench.operations --bundle edgeladder/_nano/bundle --prompts 4 16 64

The bundle says which ladder: taps, width, heads, sharing. It is built anew with each kind and
number of prompts and written as ONNX; nothing is run. Counted are multiply-adds of matrix products,
and one operation per element of what every other operator computes (of what a reduction or a
softmax reads); moving data counts nothing. What does not depend on the pictures, such as projecting
the prompts, is once a batch and stands apart. Training is forward and backward pass together.

`rows` is what prompts would add as rows of the rung's block, as VPT-deep has them in the backbone:
they pass through all of its products, and every token attends to them. In the ladder token prompts
are keys and values alone. `--block TOKENS WIDTH` compares rows and diffusion in a backbone's block.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LadderConfig, PromptConfig
from edgeladder.core.manifest import Manifest
from edgeladder.core.prompt_kinds import Kind
from edgeladder.host.compile import step
from edgeladder.host.compile.artifact import forward_graph
from edgeladder.host.compile.extent import evaluate
from edgeladder.host.compile.graph import Graph, Node
from edgeladder.host.model.ladder import Ladder

PRODUCTS = {"MatMul", "FusedMatMul", "Gemm"}
MOVES = {"Reshape", "Transpose", "Concat", "Split", "Slice", "Expand", "Identity", "Cast"}
READERS = {"Softmax", "LogSoftmax", "LayerNormalization"}  # and reductions: all that they read
KINDS: tuple[Kind, ...] = ("token", "diffusion", "cross", "memory")


@dataclass(frozen=True)
class Count:
    """Operations of a graph."""

    products: int = 0  # multiply-adds
    others: int = 0  # elements

    def __add__(self, other: Count) -> Count:
        return Count(self.products + other.products, self.others + other.others)

    def __sub__(self, other: Count) -> Count:
        return Count(self.products - other.products, self.others - other.others)


def of_node(graph: Graph, node: Node, sizes: Mapping[str, int]) -> Count:
    """One operator's; `sizes`: the symbols' values."""

    def elements(name: str) -> int:
        return int(np.prod(evaluate(graph.shapes[name], sizes), dtype=np.int64))

    if node.op in PRODUCTS:
        left = evaluate(graph.shapes[node.inputs[0]], sizes)
        inner = left[-1]
        if node.attributes.get("transA"):
            inner = left[0] if node.attributes.get("transBatchA") else left[-2]
        return Count(products=elements(node.outputs[0]) * inner)
    if node.op in MOVES:
        return Count()
    reads = node.op in READERS or node.op.startswith("Reduce")
    return Count(others=elements(node.inputs[0] if reads else node.outputs[0]))


def count(graph: Graph, sizes: Mapping[str, int]) -> Count:
    """All of a graph's operators."""
    return sum((of_node(graph, node, sizes) for node in graph.nodes), Count())


def per_picture(graph: Graph) -> tuple[Count, Count]:
    """What one picture adds, and what a batch costs beside its pictures."""
    one, two = (count(graph, {"B": pictures, "C": 0}) for pictures in (1, 2))
    return two - one, one + one - two


def rows(tokens: int, width: int, hidden: int, length: int) -> int:
    """Multiply-adds of `length` prompts as further rows of a transformer block."""
    own = 4 * width**2 + 2 * width * hidden  # query, key, value, out; feed-forward
    attended = 2 * width * ((tokens + length) ** 2 - tokens**2)
    return length * own + attended


def as_rows(ladder: Ladder, length: int) -> int:
    """The same for every rung, for one picture."""
    config = ladder.config
    hidden = int(config.width * config.hidden)
    return len(ladder.image.taps) * rows(ladder.image.tokens, config.width, hidden, length)


def in_a_block(tokens: int, width: int, lengths: list[int]) -> list[str]:
    """Deep prompts against diffusion in a block of a backbone, hidden width four times its own."""
    lines = ["| prompts in a block | rows | diffusion | less |", "|---|---|---|---|"]
    for length in lengths:
        deep, diffused = rows(tokens, width, 4 * width, length), 2 * tokens * length * width
        less = f"{100 * (diffused / deep - 1):.1f} %"
        lines.append(f"| {length} | +{deep:,} | +{diffused:,} | {less} |")
    return lines


def build(manifest: Manifest, kind: Kind, length: int) -> Ladder:
    """The bundle's ladder with other prompts, untrained."""
    profile = manifest.profile.ladder
    config: LadderConfig = replace(profile, prompts=PromptConfig(kind=kind, length=length))
    before = next((r.shape[0] for r in manifest.ladder.parameters if r.name == "project"), None)
    taps = manifest.image.taps, manifest.text.taps
    return Ladder(config, *taps, manifest.model.embedding_dim, before)


@dataclass(frozen=True)
class Cost:
    """A ladder's costs for one picture, and for a batch beside its pictures."""

    forward: Count
    once: Count
    training: Count


def cost(ladder: Ladder) -> Cost:
    """Of the picture's side."""
    forward = forward_graph(ladder, 1.0)
    names = [name for name, _ in ladder.named_parameters()]
    trained = step.Trained(names, [name for name, _ in ladder.named_buffers()])
    each, once = per_picture(step.encode(forward, "image"))
    training, _ = per_picture(step.backward(forward, trained, "image"))
    return Cost(each, once, training)


def table(manifest: Manifest, lengths: list[int]) -> list[str]:
    """Lines of a markdown table; everything beyond the first row is what prompts add to it."""
    bare = build(manifest, "none", 1)
    base = cost(bare)
    lines = [
        "| prompts | products | others | once a batch | in training | others | against token |",
        "|---|---|---|---|---|---|---|",
        f"| none | {base.forward.products:,} | {base.forward.others:,} | {base.once.products:,} "
        f"| {base.training.products:,} | {base.training.others:,} | |",
    ]
    for length in lengths:
        token = 0
        for kind in KINDS:
            found = cost(build(manifest, kind, length))
            more, once = found.forward - base.forward, found.once - base.once
            training = found.training - base.training
            token = token or more.products
            lines.append(
                f"| {length} {kind} | +{more.products:,} | +{more.others:,} | +{once.products:,} "
                f"| +{training.products:,} | +{training.others:,} "
                f"| {100 * (more.products / token - 1):+.0f} % |"
            )
        deep = as_rows(bare, length)
        share = f"{100 * (deep / token - 1):+.0f} %"
        lines.append(f"| {length} rows | +{deep:,} | | | | | {share} |")
    return lines


def main() -> None:
    """A table for each bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, nargs="+", default=[])
    parser.add_argument("--prompts", type=int, nargs="+", default=[4, 16, 64])
    words = ("TOKENS", "WIDTH")
    parser.add_argument("--block", type=int, nargs=2, metavar=words, help="of a backbone, too")
    arguments = parser.parse_args()
    if arguments.block:
        tokens, width = arguments.block
        print("\n".join(in_a_block(tokens, width, arguments.prompts)), flush=True)
    for folder in arguments.bundle:
        manifest = Bundle.open(folder).manifest
        ladder = manifest.profile.ladder
        image = manifest.image.taps
        print(
            f"\n{manifest.model.name}: {len(image)} taps of {image[0].tokens} tokens, "
            f"rungs of width {ladder.width}, {ladder.heads} heads\n"
        )
        print("\n".join(table(manifest, arguments.prompts)), flush=True)


if __name__ == "__main__":
    main()
