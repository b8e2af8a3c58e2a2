"""The numeric gate: no bundle is written whose numbers disagree with torch.

Torch autograd in float64 is the referee for gradients, torch.optim.AdamW for the optimiser, the
library's own forward pass for the segments (`segments.check_segments`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LossConfig
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.tensors import write_tensors
from edgeladder.host.compile.artifact import arguments, examples
from edgeladder.host.model.ladder import Ladder, Objective
from edgeladder.runtime.engine.golden import (
    LEARNING_RATE,
    STEPS,
    ArrayInputs,
    fingerprint,
    golden_train,
    groups_of,
    perturbed,
    run_steps,
)
from edgeladder.runtime.engine.protocol import StepPlan
from edgeladder.runtime.engine.stock import StockEngine

GRADIENT_TOLERANCE = 1e-4
# AdamW steps as far along a gradient that is all rounding as along any other, so a few elements may
# differ by a step; an optimiser that is wrong is off by percents
STATE_TOLERANCE = 1e-3
FLOOR_TOLERANCE = 1e-5
# A small tensor is measured against this share of all of them: its numbers are sums of larger ones
# that cancel in fp32 (a gate's gradient). What is wrong is off by its own size, which still shows.
SMALL = 0.03
_BATCH, _CLASSES, _CHUNK = 4, 6, 3


@dataclass(frozen=True)
class GateReport:
    """Largest relative error per engine and mode."""

    gradient: dict[str, float]
    optimizer: dict[str, float]
    floor: float


def check_ladder(ladder: Ladder, logit_scale: float, bundle: Bundle) -> GateReport:
    """Hold both engines' gradients and updates against torch and write the golden vectors.

    Raises:
        EdgeLadderError: naming engine, mode, parameter and error.
    """
    inputs = examples(ladder, _BATCH, _CLASSES, seed=7)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    given = ArrayInputs(arrays, groups_of(bundle))
    start = {n: v for n, v in ladder.state_dict().items()}
    names = [record.name for record in bundle.manifest.ladder.parameters]
    initial = {name: start[name].detach().numpy() for name in names}
    loss, gradients = _torch_gradients(ladder, logit_scale, inputs, perturbed(initial))
    states, losses = _torch_steps(ladder, logit_scale, inputs, perturbed(initial), bundle)
    floor = _floor(ladder, inputs)
    engines = _engines(bundle)
    gradient_errors, state_errors = {}, {}
    for label, engine in engines.items():
        engine.set_parameters(perturbed(initial))
        found_loss = engine.gradients(given)
        worst = _compare(engine.gradient_views, gradients, label, GRADIENT_TOLERANCE, "gradient")
        if abs(found_loss - loss) > 1e-4 * abs(loss):
            raise EdgeLadderError(f"{label}: loss {found_loss} against torch's {loss}")
        gradient_errors[label] = worst
        engine.set_parameters(initial)
        after = run_steps(engine, given)
        parameters = {n.partition("/")[2]: v for n, v in after.items() if n != "losses"}
        state_errors[label] = _compare(parameters, states, label, STATE_TOLERANCE, "parameter")
        engine.close()
    golden = {f"input/{name}": np.ascontiguousarray(value) for name, value in arrays.items()}
    golden["losses"] = np.array(losses)
    for kind, tensors in (("gradient", gradients), ("state", states)):
        golden |= {f"{kind}/{name}": value for name, value in fingerprint(tensors).items()}
    write_tensors(bundle.path(bundle.manifest.ladder.golden), golden)
    return GateReport(gradient_errors, state_errors, floor)


def _engines(bundle: Bundle) -> dict[str, StockEngine]:
    train, loss = golden_train(), LossConfig()
    plans = {
        "stock fused": StepPlan("fused", threads=2),
        "stock recompute": StepPlan("recompute", threads=2),
        "stock chunked": StepPlan("chunked", _CHUNK, threads=2),
        "stock chunked, activations held": StepPlan("chunked", _CHUNK, hold_bytes=1 << 40),
    }
    engines = {label: StockEngine(bundle, plan, train, loss) for label, plan in plans.items()}
    if bundle.manifest.ladder.ort_training:
        from edgeladder.runtime.engine.training_build import OrtTrainingEngine

        engines["ort-training"] = OrtTrainingEngine(bundle, StepPlan(), train, loss)
    return engines


def _torch_objective(
    ladder: Ladder, logit_scale: float, values: dict[str, np.ndarray], dtype: torch.dtype
) -> Objective:
    import copy

    objective = Objective(copy.deepcopy(ladder), logit_scale)
    with torch.no_grad():
        for name, parameter in objective.ladder.named_parameters():
            parameter.copy_(torch.from_numpy(values[name]))
    objective.to(dtype)  # in place
    return objective


def _torch_gradients(
    ladder: Ladder,
    logit_scale: float,
    inputs: dict[str, torch.Tensor],
    values: dict[str, np.ndarray],
) -> tuple[float, dict[str, np.ndarray]]:
    objective = _torch_objective(ladder, logit_scale, values, torch.float64)
    wide = {name: value.double() for name, value in inputs.items()}
    loss = objective(*arguments(ladder, wide))[0]
    loss.backward()
    gradients = {}
    for name, parameter in objective.ladder.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.numpy()
    return float(loss.detach()), gradients


def _torch_steps(
    ladder: Ladder,
    logit_scale: float,
    inputs: dict[str, torch.Tensor],
    values: dict[str, np.ndarray],
    bundle: Bundle,
) -> tuple[dict[str, np.ndarray], list[float]]:
    """torch.optim.AdamW with clipping, decay as the bundle says."""
    objective = _torch_objective(ladder, logit_scale, values, torch.float64)
    wide = {name: value.double() for name, value in inputs.items()}
    train = golden_train()
    decay = {record.name: record.decay for record in bundle.manifest.ladder.parameters}
    named = list(objective.ladder.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if decay[n]], "weight_decay": train.weight_decay},
            {"params": [p for n, p in named if not decay[n]], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
    )
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = objective(*arguments(ladder, wide))[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.ladder.parameters(), train.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {n: p.detach().numpy() for n, p in named}, losses


def _floor(ladder: Ladder, inputs: dict[str, torch.Tensor]) -> float:
    """Step 0 is zero-shot: the tuned embeddings are the given ones (contract 3)."""
    given = arguments(ladder, inputs)
    with torch.no_grad():
        image, text = ladder(*given[:4], *given[5:])
    error = max(
        float((image - inputs["image_embedding"]).abs().max()),
        float((text - inputs["text_embedding"]).abs().max()),
    )
    if not error <= FLOOR_TOLERANCE:
        raise EdgeLadderError(
            f"the untrained ladder moves embeddings by {error:.1e}",
            where="step 0",
            remedy="every residual path needs exactly one zero factor",
        )
    return error


def _compare(
    found: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    label: str,
    tolerance: float,
    kind: str,
) -> float:
    """Largest relative error by tensor; every tensor must be there."""
    worst = 0.0
    whole = np.sqrt(sum(float(np.sum(v**2)) for v in expected.values()))
    for name, reference in expected.items():
        if name not in found:
            raise EdgeLadderError(f"{label} lacks the {kind} of {name!r}")
        scale = max(float(np.linalg.norm(reference)), SMALL * whole)
        error = float(np.linalg.norm(found[name] - reference)) / scale
        worst = max(worst, error)
        if not error < tolerance:
            raise EdgeLadderError(
                f"{label}: {kind} of {name!r} is off by {error:.1e} (relative) from torch's",
                where="the numeric gate",
                remedy="no bundle was written; report the model and profile",
            )
    return worst
