"""The ladder's part of a bundle: forward graph, training graphs, initial and golden values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from edgeladder.core.config import TrainConfig
from edgeladder.core.manifest import GraphRecord, LadderRecord, ParameterRecord, TensorRecord
from edgeladder.core.tensors import write_tensors
from edgeladder.host.compile import (
    optimizer_graphs as optimizer,
)
from edgeladder.host.compile import (
    step,
)
from edgeladder.host.compile import (
    training_artifacts as ort_training,
)
from edgeladder.host.compile.forward import lower
from edgeladder.host.compile.graph import Graph
from edgeladder.host.model.ladder import Ladder, Objective

_EXAMPLE = (3, 5)  # pictures and classes in the example batch
_COUNT = "M"  # before a rung's number: the symbol of how many prompts it has


def decays(ladder: Ladder, name: str, shape: tuple[int, ...]) -> bool:
    """Whether weight decay applies: not to biases, single numbers (gates), prompts' gains."""
    undecayed = {f"prompts.{own}" for own in ladder.prompts.undecayed}
    return "bias" not in name and name not in undecayed and math.prod(shape) > 1


def examples(ladder: Ladder, count: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Random inputs of a step, by name: standardised taps, unit embeddings, soft targets."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs: dict[str, Tensor] = {}
    for side, number in zip(ladder.sides, (count, classes), strict=True):
        for group in side.groups:
            inputs[group.input] = normal(len(group.taps), group.tokens, number, group.width)
        width = embedding_width(ladder)
        inputs[f"{side.name}_embedding"] = functional.normalize(normal(number, width), dim=-1)
    labels = torch.randint(classes, (count,), generator=generator)
    inputs["targets"] = functional.one_hot(labels, classes).float()
    if ladder.project is not None:
        inputs["image_embedding_pre"] = normal(count, ladder.project.shape[0]) * 0.1
    return inputs


def embedding_width(ladder: Ladder) -> int:
    """D: width of CLIP's joint embedding."""
    up = ladder.up if ladder.config.share == "trunk+up" else ladder.image_up
    return int(up.shape[1])


def arguments(ladder: Ladder, inputs: dict[str, Tensor]) -> tuple[Any, ...]:
    """Named inputs as `Objective.forward` takes them."""
    given: tuple[Any, ...] = (
        [inputs[g.input] for g in ladder.image.groups],
        inputs["image_embedding"],
        [inputs[g.input] for g in ladder.text.groups],
        inputs["text_embedding"],
        inputs["targets"],
    )
    return (*given, inputs["image_embedding_pre"]) if ladder.project is not None else given


class _Chosen(Objective):
    """The objective with the places of the kept prompts as its first input."""

    def forward(self, *given: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As the objective's, after the list of places."""
        rows, *rest = given
        named["rows"] = rows
        return super().forward(*rest, **named)


def prompt_counts(ladder: Ladder) -> dict[str, int]:
    """Symbols of the rungs' numbers of prompts, and how many there are before condensation."""
    prompts = ladder.prompts
    if not prompts.condensed:
        return {}
    return {f"{_COUNT}{rung}": prompts.length for rung in range(prompts.rungs)}


def forward_graph(ladder: Ladder, logit_scale: float) -> Graph:
    """`forward.onnx` as a graph: the whole step's forward pass.

    Sizes B and C are symbolic; where prompts can be condensed, so is each rung's number of them,
    M0 to M(L-1), and the places of those that are kept are inputs.
    """
    inputs = examples(ladder, *_EXAMPLE, seed=0)
    batch, classes = (
        torch.export.Dim("B", min=2, max=1 << 20),
        torch.export.Dim("C", min=2, max=1 << 20),
    )
    dynamic: tuple[Any, ...] = (
        [{2: batch} for _ in ladder.image.groups],
        {0: batch},
        [{2: classes} for _ in ladder.text.groups],
        {0: classes},
        {0: batch, 1: classes},
    )
    names = [
        *[g.input for g in ladder.image.groups],
        "image_embedding",
        *[g.input for g in ladder.text.groups],
        "text_embedding",
        "targets",
    ]
    if ladder.project is not None:
        dynamic, names = (*dynamic, {0: batch}), [*names, "image_embedding_pre"]
    given, objective = arguments(ladder, inputs), Objective(ladder, logit_scale)
    counts = prompt_counts(ladder)
    if counts:
        # sizes that nothing else has, and not of this ladder: torch takes 0 and 1 as fixed
        rows = [torch.zeros(17 + rung, dtype=torch.int64) for rung in range(len(counts))]
        free = [{0: torch.export.Dim(name, min=2, max=1 << 20)} for name in counts]
        given, dynamic = (rows, *given), ((free, *dynamic),)
        names = [*ladder.prompts.tensors().kept_inputs(len(rows)), *names]
        objective = _Chosen(ladder, logit_scale)
    return lower(objective.eval(), given, dynamic, names, ["loss", "image", "text"], "forward")


def write_ladder(
    ladder: Ladder,
    logit_scale: float,
    folder: Path,
    *,
    train: TrainConfig,
    with_ort_training: bool,
    progress: Callable[[str], None] = lambda note: None,
) -> LadderRecord:
    """Write `folder/ladder/`: graphs, initial parameters and, where asked for, ORT's artifacts.

    The golden vectors are the gate's to write (`gate.py`).
    """
    target = folder / "ladder"
    target.mkdir(parents=True)
    progress("ladder forward")
    traced = forward_graph(ladder, logit_scale)
    traced.save(target / "forward.onnx")
    forward = Graph.from_onnx(onnx.load(str(target / "forward.onnx")))  # the one source of truth
    named = {n: tuple(p.shape) for n, p in ladder.named_parameters() if n in forward.inputs}
    buffers = {n: tuple(b.shape) for n, b in ladder.named_buffers() if n in forward.inputs}
    initial = {n: v.detach().numpy() for n, v in ladder.state_dict().items() if n in forward.inputs}
    stored = {n: np.ascontiguousarray(v) for n, v in initial.items() if n in buffers or v.any()}
    write_tensors(target / "init.safetensors", stored)  # `initial_values` fills in the zeros
    trained, counts = step.Trained(list(named), list(buffers)), prompt_counts(ladder)
    built: dict[str, Graph] = {}
    for name, make in _recipes(forward, trained).items():
        progress(f"ladder {name}")
        built[name] = make()
        built[name].save(target / f"{name}.onnx")
    files: dict[str, str] = {}
    if with_ort_training:
        progress("ladder ort_training")
        artifacts = ort_training.write_artifacts(
            target / "forward.onnx", initial, list(named), train, target / "ort_training"
        )
        files = {role: f"ladder/ort_training/{file}" for role, file in artifacts.items()}
    records = [
        ParameterRecord(name=n, shape=list(s), decay=decays(ladder, n, s)) for n, s in named.items()
    ]
    return LadderRecord(
        parameters=records,
        buffers=[TensorRecord(name=n, shape=list(s)) for n, s in buffers.items()],
        prompts=ladder.prompts.tensors(),
        groups=[*ladder.image.groups, *ladder.text.groups],
        image_inputs=["image_embedding_pre"] if ladder.project is not None else [],
        forward="ladder/forward.onnx",
        initial="ladder/init.safetensors",
        golden="ladder/golden.safetensors",
        graphs={name: _record(name, graph, counts) for name, graph in built.items()},
        ort_training=files,
    )


def _made(graph: Graph) -> Graph:
    return graph


def _recipes(forward: Graph, trained: step.Trained) -> dict[str, Callable[[], Graph]]:
    kept: dict[str, Callable[[], Graph]] = {}
    for side in ("image", "text"):
        keep, back = step.kept(forward, trained, side)
        kept[f"forward_saved_{side}"] = partial(_made, keep)
        kept[f"backward_saved_{side}"] = partial(_made, back)
    return {
        "fused": lambda: step.fused(forward, trained),
        "recompute": lambda: step.fused(forward, trained, recompute=True),
        "encode_image": lambda: step.encode(forward, "image"),
        "encode_text": lambda: step.encode(forward, "text"),
        "backward_image": lambda: step.backward(forward, trained, "image"),
        "backward_text": lambda: step.backward(forward, trained, "text"),
        **kept,
        "loss": lambda: step.loss(forward),
        "adamw": optimizer.adamw,
        "adamw8": optimizer.adamw8,
        "sgd": optimizer.sgd,
        "norm": optimizer.norm,
    }


def _record(name: str, graph: Graph, counts: Mapping[str, int]) -> GraphRecord:
    """A graph's record; memory as with every prompt there is."""
    if name in ("adamw", "adamw8", "sgd", "norm"):
        peaks: list[tuple[float, float, float]] = []
    else:
        peaks = step.peak_lines(graph, counts)
    at = max(
        peaks, key=lambda line: line[0] + 32 * line[1] + 100 * line[2], default=(0.0, 0.0, 0.0)
    )
    return GraphRecord(
        file=f"ladder/{name}.onnx",
        inputs=graph.inputs,
        outputs=graph.outputs,
        nodes=len(graph.nodes),
        activation_bytes={"fixed": at[0], "per_image": at[1], "per_class": at[2]},
        peaks=peaks,
        residual_bytes=step.residual_bytes(graph, counts)
        if name.startswith("forward_saved")
        else 0.0,
    )
