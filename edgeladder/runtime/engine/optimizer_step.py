"""The optimiser's state and its update, block by block over the flat parameter vector."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.runtime.session import Bound, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from edgeladder.core.config import TrainConfig
    from edgeladder.core.manifest import ParameterRecord
    from edgeladder.runtime.engine.protocol import StepPlan

ROW = 256  # elements per quantisation scale; sections are padded to it
# elements per update: temporaries stay in the cache, and below the 128 KB from which malloc maps
# each of them anew
_BLOCK = ROW * 120


class Layout:
    """Where each parameter lies in the flat vector: decayed ones first, both parts padded."""

    def __init__(self, parameters: list[ParameterRecord]):
        self.shapes = {p.name: tuple(p.shape) for p in parameters}
        self.offsets: dict[str, int] = {}
        self.sections: list[tuple[int, int, bool]] = []  # start, stop, decay
        place = 0
        for decay in (True, False):
            start = place
            for record in (p for p in parameters if p.decay is decay):
                self.offsets[record.name] = place
                place += math.prod(record.shape)
            place += -place % ROW
            if place > start:
                self.sections.append((start, place, decay))
        self.size = place

    def views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Each parameter as a view of the flat vector."""
        return {
            name: flat[offset : offset + math.prod(self.shapes[name])].reshape(self.shapes[name])
            for name, offset in self.offsets.items()
        }


class Optimizer:
    """AdamW (fp32 or 8-bit moments) or SGD with momentum, updating `parameters` in place."""

    def __init__(
        self,
        graphs: dict[str, Path],
        layout: Layout,
        parameters: np.ndarray,
        gradients: np.ndarray,
        train: TrainConfig,
        plan: StepPlan,
    ):
        self.train, self.layout = train, layout
        self.kind = (
            "sgd" if train.optimizer == "sgd" else "adamw8" if plan.moments == "int8" else "adamw"
        )
        self.step_count = 0
        self.gradients = gradients
        count = layout.size
        self.moments: dict[str, np.ndarray] = {}
        if self.kind == "adamw8":
            self.moments["moment1"] = np.zeros(count, np.int8)
            self.moments["scale1"] = np.zeros(count // ROW, np.float32)
            self.moments["moment2"] = np.zeros(count, np.uint8)
            self.moments["scale2"] = np.zeros(count // ROW, np.float32)
        else:
            self.moments["moment1"] = np.zeros(count, np.float32)
            if self.kind == "adamw":
                self.moments["moment2"] = np.zeros(count, np.float32)
        self.scalars = {label: np.zeros((), np.float32) for label in self._values(1.0, 0.0)}
        self.keep = {decay: np.ones((), np.float32) for decay in (True, False)}
        session = open_session(graphs[self.kind], plan.threads, as_written=True, arena=plan.arena)
        self._ranks = {item.name: len(item.shape) for item in session.get_inputs()}
        self.blocks = [
            self._block(session, parameters, start, min(start + _BLOCK, stop), decay)
            for first, stop, decay in layout.sections
            for start in range(first, stop, _BLOCK)
        ]
        self._squared = np.zeros((), np.float32)
        self._norm = Bound(
            open_session(graphs["norm"], plan.threads, as_written=True, arena=plan.arena)
        )
        self._norm.bind_inputs({"gradient": gradients})
        self._norm.bind_outputs({"squared_norm": self._squared})

    def _block(
        self, session: InferenceSession, parameters: np.ndarray, start: int, stop: int, decay: bool
    ) -> Bound:
        rows = slice(start // ROW, stop // ROW)
        arrays = {"parameter": parameters[start:stop], "gradient": self.gradients[start:stop]}
        for name, moment in self.moments.items():
            arrays[name] = moment[rows if name.startswith("scale") else slice(start, stop)]
        # in rows of one scale each, and that a column, where the bundle's graph has it so
        arrays = {
            name: array if self._ranks[name] == 1 else array.reshape((stop - start) // ROW, -1)
            for name, array in arrays.items()
        }
        block = Bound(session)
        block.bind_inputs({**arrays, **self.scalars, "keep": self.keep[decay]})
        # in place: the compiler proved that no reader of an input can run after its writer
        block.bind_outputs({f"{name}_next": array for name, array in arrays.items()})
        return block

    def update(self, learning_rate: float) -> float:
        """One step from the gradients as they stand; returns their global norm before clipping."""
        train = self.train
        self._norm.run()
        norm = math.sqrt(float(self._squared))
        self.step_count += 1
        clip = min(1.0, train.clip / (norm + 1e-6))
        for label, value in self._values(clip, learning_rate).items():
            self.scalars[label][...] = value
        self.keep[True][...] = 1.0 - learning_rate * train.weight_decay
        if math.isfinite(norm):  # a step from NaN gradients would lose the parameters
            for block in self.blocks:
                block.run()
        return norm

    def _values(self, clip: float, learning_rate: float) -> dict[str, float | np.floating]:
        """Scalars of this step by the names of the optimiser graphs' inputs.

        `rest1`, `rest2`, `correction` and `epsilon` are read by earlier bundles' 8-bit graphs.
        """
        train = self.train
        beta1, beta2 = np.float32(train.beta1), np.float32(train.beta2)
        rate, correction, k = learning_rate, 1.0, 1.0
        if self.kind != "sgd":
            time = max(1, self.step_count)
            rate /= 1.0 - train.beta1**time
            correction = 1.0 / math.sqrt(1.0 - train.beta2**time)
            k = correction * math.sqrt(1.0 - train.beta2) / (1.0 - train.beta1)
        return {
            "clip": clip,
            "beta1": beta1,
            "rest1": np.float32(1) - beta1,
            "share": (1.0 - train.beta1) * clip,
            "beta2": beta2,
            "rest2": np.float32(1) - beta2,
            "rate": rate,
            "stride": rate / k,
            "correction": correction,
            "epsilon": train.epsilon,
            "floor": train.epsilon / k,
        }
