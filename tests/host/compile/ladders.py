"""Tiny ladders that between them use every method and switch, lowered once per test run."""

from __future__ import annotations

import functools
import itertools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgeladder.core.config import LadderConfig, PromptConfig
from edgeladder.core.manifest import TapRecord
from edgeladder.core.prompt_kinds import KINDS
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.core.records import from_json
from edgeladder.host.compile.artifact import forward_graph
from edgeladder.host.compile.graph import Graph
from edgeladder.host.compile.step import Trained
from edgeladder.host.model.ladder import Ladder, Objective
from edgeladder.runtime.kept_prompts import kept_places
from edgeladder.runtime.session import open_session

DIM = 12  # of the embeddings
PRE = 10  # of the picture's embedding before its projection
SCALE = 10.0  # of the logits
NAMES = PromptTensors()
EVEN = ((3, 14), (3, 14))  # taps of a tower: (tokens, width) each
UNEVEN = ((3, 14), (3, 20))
SHORT = ((2, 12),)
THREE = ((3, 14), (3, 14), (3, 20))


@dataclass(frozen=True)
class Recipe:
    """A ladder to test."""

    kind: str = "token"
    share: str = "trunk"
    aggregate: str = "last"
    fuse: str = "gate"
    project: bool = False
    bits: int | None = None
    keep: float | None = None
    couple: bool = True
    dropout: float | None = None
    cross: str = "shared"
    image: tuple[tuple[int, int], ...] = EVEN
    text: tuple[tuple[int, int], ...] = EVEN
    first: str = "tap"

    def __str__(self) -> str:
        words = [self.kind, self.share, self.aggregate]
        words += ["gated"] * (self.first == "gated")
        words += ["sum"] * (self.fuse == "sum") + ["project"] * self.project
        words += [f"bits{self.bits}"] * (self.bits is not None)
        words += ["keep"] * (self.keep is not None) + ["apart"] * (not self.couple)
        words += ["dropout"] * (self.dropout is not None) + [self.cross] * (self.cross != "shared")
        return "-".join([*words, f"{len(self.image)}x{len(self.text)}"])


# Each method with shared and with separate rungs; every value of every other switch
RECIPES = (
    Recipe(),
    Recipe("token", "none", "unipt", bits=2, keep=0.5, image=UNEVEN, text=SHORT),
    Recipe("none", "none", first="gated", image=SHORT, text=UNEVEN),
    Recipe("none", "trunk", "sherl", project=True, image=UNEVEN),
    Recipe("cross", "none", "sherl", keep=0.5, couple=False, dropout=0.3, cross="copied"),
    Recipe("none", "trunk", "sherl", image=THREE),
    Recipe("none", "none", "sherl", image=THREE, text=THREE),
    Recipe("cross", "trunk", dropout=0.3, cross="frozen", text=SHORT),
    Recipe("cross", "trunk+up", "unipt", "sum", True, bits=1, keep=0.5, couple=False, text=SHORT),
    Recipe("diffusion", "none", "last", "sum", bits=4, couple=False, text=SHORT),
    Recipe("diffusion", "trunk", "sherl", first="gated", keep=0.5, project=True, image=SHORT),
    Recipe("memory", "none", "unipt", keep=0.5),
    Recipe("memory", "trunk+up", bits=8, couple=False, image=UNEVEN, text=UNEVEN),
)
# a kind that is new: with shared and with separate rungs, and with all that it combines with
RECIPES += tuple(
    Recipe(kind, share, bits=2 if row.quantize else None, keep=0.5 if row.condense else None)
    for kind, row in KINDS.items()
    if kind not in {recipe.kind for recipe in RECIPES}
    for share in ("none", "trunk")
)


def build(recipe: Recipe) -> Ladder:
    """The ladder of a recipe: width 16, two heads, three prompts, seed 0."""
    torch.manual_seed(0)
    config = from_json(
        LadderConfig,
        {
            "width": 16,
            "heads": 2,
            "hidden": 2,
            "share": recipe.share,
            "aggregate": recipe.aggregate,
            "fuse": recipe.fuse,
            "first": recipe.first,
            "project": recipe.project,
            "prompts": from_json(
                PromptConfig,
                {
                    "kind": recipe.kind,
                    "length": 3,
                    "bits": recipe.bits,
                    "keep": recipe.keep,
                    "couple": recipe.couple,
                    "dropout": recipe.dropout,
                    "cross_weights": recipe.cross,
                },
            ),
        },
    )
    taps = {
        side: [
            TapRecord(name=f"{side}_{i}", block=i, tokens=tokens, width=width)
            for i, (tokens, width) in enumerate(shapes)
        ]
        for side, shapes in (("image", recipe.image), ("text", recipe.text))
    }
    return Ladder(config, taps["image"], taps["text"], DIM, PRE if recipe.project else None)


@dataclass
class Case:
    """A ladder in torch and as `forward.onnx`'s graph."""

    objective: Objective
    forward: Graph
    trained: Trained
    names: Sequence[str] = field(default_factory=list)  # of the inputs that are data

    @property
    def ladder(self) -> Ladder:
        return self.objective.ladder

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by their names in the graph (copies)."""
        values = self.objective.state_dict()
        return {k.removeprefix("ladder."): v.numpy().copy() for k, v in values.items()}

    def random_state(self, seed: int = 1, deviation: float = 0.2) -> dict[str, np.ndarray]:
        """A point at which no gradient is zero: parameters random, some prompts masked."""
        random = np.random.default_rng(seed)
        state = self.state()
        for name in self.trained.parameters:
            value = random.normal(size=state[name].shape) * deviation
            if name.endswith("tokens"):  # as large as they act
                value = value / self.ladder.prompts.size
            state[name] = value.astype(np.float32)
        for name in self.trained.buffers:
            if name.endswith("mask"):
                state[name][:, -1] = 0.0
            if name.endswith("dropout"):
                kept = random.random(state[name].shape) >= 0.3
                state[name] = (kept / 0.7).astype(np.float32)
        return state

    def data(self, batch: int = 5, classes: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
        """Taps, embeddings and soft targets by input name."""
        generator = torch.Generator().manual_seed(seed)
        arguments = example(self.ladder, batch, classes, generator)
        return dict(zip(self.names, (t.numpy() for t in flat(arguments)), strict=True))

    def reference(
        self, data: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """loss, image and text, and the gradients, by torch in float64."""
        objective = Objective(self.ladder, SCALE).double()
        saved = {k: v.clone() for k, v in objective.state_dict().items()}
        try:
            objective.load_state_dict(
                {f"ladder.{k}": torch.from_numpy(v).double() for k, v in state.items()}
            )
            objective.zero_grad(set_to_none=True)
            outputs = objective(*self.nested(data))
            outputs[0].backward()
            gradients = {
                name.removeprefix("ladder."): parameter.grad.numpy().copy()
                for name, parameter in objective.named_parameters()
                if parameter.grad is not None
            }
        finally:
            objective.load_state_dict(saved)
            objective.float()
        labels = ("loss", "image", "text")
        return dict(zip(labels, (o.detach().numpy() for o in outputs), strict=True)), gradients

    def nested(self, data: Mapping[str, np.ndarray]) -> list[Any]:
        """Data as the objective's arguments, float64."""
        tensors = iter(torch.from_numpy(data[name]).double() for name in self.names)
        return [
            list(itertools.islice(tensors, len(self.ladder.image.groups))),
            next(tensors),
            list(itertools.islice(tensors, len(self.ladder.text.groups))),
            next(tensors),
            *tensors,
        ]


def example(
    ladder: Ladder, batch: int, classes: int, generator: torch.Generator | None = None
) -> list[Any]:
    """Random arguments of the objective; a few targets are soft."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def unit(count: int) -> torch.Tensor:
        return functional.normalize(normal(count, DIM), dim=-1)

    labels = torch.arange(batch) % classes
    arguments: list[Any] = [
        [normal(len(g.taps), g.tokens, batch, g.width) for g in ladder.image.groups],
        unit(batch),
        [normal(len(g.taps), g.tokens, classes, g.width) for g in ladder.text.groups],
        unit(classes),
        0.9 * torch.eye(classes)[labels] + 0.1 / classes,
    ]
    if ladder.project is not None:
        arguments.append(normal(batch, PRE))
    return arguments


def flat(arguments: Sequence[Any]) -> list[torch.Tensor]:
    """Nested lists of tensors as one list."""
    found: list[torch.Tensor] = []
    for argument in arguments:
        found += flat(argument) if isinstance(argument, list) else [argument]
    return found


# recording every symbol takes longer than the trace, where pytest listens to all loggers
logging.getLogger("torch.__trace").disabled = True


@functools.cache
def case(recipe: Recipe) -> Case:
    """The ladder of a recipe, lowered (a second each, so once)."""
    ladder = build(recipe)
    objective = Objective(ladder, SCALE)
    graph = forward_graph(ladder, SCALE)
    names = [g.input for g in ladder.image.groups] + ["image_embedding"]
    names += [g.input for g in ladder.text.groups] + ["text_embedding", "targets"]
    if ladder.project is not None:
        names.append("image_embedding_pre")
    parameters = [name.removeprefix("ladder.") for name, _ in objective.named_parameters()]
    buffers = [name.removeprefix("ladder.") for name, _ in objective.named_buffers()]
    return Case(objective, graph, Trained(parameters, buffers), names)


def execute(graph: Graph, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph on onnxruntime, in a session set up as the engine's are.

    Args:
        graph: the graph.
        feed: its inputs, and more; places of kept prompts that are not given follow from the mask.
    """
    feed = {**kept_places(feed, NAMES), **feed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        graph.save(path)
        session = open_session(path, 1, as_written=True)
    wanted = {item.name: feed[item.name] for item in session.get_inputs()}
    return dict(zip(graph.outputs, session.run(graph.outputs, wanted), strict=True))


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """|value - reference| / |reference|."""
    scale = float(np.linalg.norm(reference))
    return float(np.linalg.norm(value - reference)) / max(scale, 1e-12)
