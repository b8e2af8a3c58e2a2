"""The ort-training engine: onnxruntime-training's gradient graph under the same optimiser.

The training model from its artifacts adds gradients into buffers that it is given; they are views
of our flat vector, so that parameters, moments, clipping, checkpoints and results are the stock
engine's, and a run may continue on either engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import ConfigError
from edgeladder.runtime.engine.protocol import StepPlan
from edgeladder.runtime.engine.stock import StockEngine
from edgeladder.runtime.session import Bound, open_session

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.config import LossConfig, TrainConfig


class OrtTrainingEngine(StockEngine):
    """Fused steps by onnxruntime-training; everything else as the stock engine does it."""

    name = "ort-training"

    def __init__(self, bundle: Bundle, plan: StepPlan, train: TrainConfig, loss: LossConfig):
        files = bundle.manifest.ladder.ort_training
        if not files:
            raise ConfigError(
                "the bundle has no onnxruntime-training artifacts",
                where=str(bundle.folder),
                remedy="export it on a host with 'edgeladder[host,ort-training]', "
                "or use --engine stock",
            )
        if plan.mode != "fused":
            raise ConfigError(
                f"the ort-training engine has no {plan.mode} step",
                where="the plan",
                remedy="use --engine stock, or a larger --budget",
            )
        super().__init__(bundle, plan, train, loss)
        self._training = bundle.path(files["training_model"])
        self._reset = np.array([True])

    def _session(self, name: str) -> Bound:
        if name != "fused" or name in self._sessions:
            return super()._session(name)
        bound = Bound(open_session(self._training, self.plan.threads))
        buffers = {
            f"{name}_grad.accumulation.buffer": view for name, view in self.gradient_views.items()
        }
        bound.bind_inputs({**self._views, **self._buffers, **self._places, **buffers})
        bound.bind_inputs({"lazy_reset_grad": self._reset})
        bound.bind_outputs({"loss": self._loss})
        for output in bound.outputs:
            if output != "loss":  # flags that say an accumulation happened
                bound.binding.bind_output(output)
        self._sessions[name] = bound
        return bound
