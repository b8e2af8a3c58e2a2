"""Two engines behind one protocol: stock onnxruntime and onnxruntime-training.

Both distributions install the same `onnxruntime` module, so having both leaves whichever was
written last, half overwritten; `check_environment` finds that before it does harm.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import TYPE_CHECKING

from edgeladder.device.engine.protocol import Engine, StepInputs, StepPlan, StepResult
from edgeladder.errors import ConfigError

if TYPE_CHECKING:
    from edgeladder.bundle import Bundle
    from edgeladder.config import LossConfig, TrainConfig

__all__ = [
    "Engine",
    "StepInputs",
    "StepPlan",
    "StepResult",
    "check_environment",
    "installed_engines",
    "open_engine",
]

_STOCK = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_TRAINING = ("onnxruntime-training", "onnxruntime-training-cpu")


def _installed(names: tuple[str, ...]) -> list[str]:
    found = []
    for name in names:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def check_environment() -> None:
    """Refuse an environment in which two distributions fight over the `onnxruntime` module.

    Raises:
        ConfigError: with the commands that repair it.
    """
    stock, training = _installed(_STOCK), _installed(_TRAINING)
    both = stock + training
    if len(both) > 1:
        keep = "onnxruntime-training-cpu==1.19.2" if training else "onnxruntime"
        raise ConfigError(
            f"{' and '.join(both)} overwrite each other's `onnxruntime` module",
            where="this Python environment",
            remedy=f"pip uninstall -y {' '.join(both)} && pip install {keep}",
        )
    if not both and importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(
            "onnxruntime is not installed",
            where="this Python environment",
            remedy="pip install onnxruntime",
        )


def installed_engines() -> list[str]:
    """Engines that can run here, the preferred one last: `stock` always, then `ort-training`."""
    engines = []
    if importlib.util.find_spec("onnxruntime") is not None:
        engines.append("stock")
        # find_spec of a submodule would import the package: look for its folder instead
        spec = importlib.util.find_spec("onnxruntime")
        if spec is not None and _installed(_TRAINING):
            engines.append("ort-training")
    return engines


def open_engine(
    name: str, bundle: Bundle, plan: StepPlan, train: TrainConfig, loss: LossConfig
) -> Engine:
    """Open the engine `name` (`auto`, `stock` or `ort-training`) on a bundle's ladder.

    `auto` takes onnxruntime-training where its wheel and the bundle's artifacts are at hand and
    the plan is one it can follow (fused, fp32 moments, AdamW), else the stock engine.

    Raises:
        ConfigError: unknown or not installed, or a plan the engine cannot follow.
    """
    check_environment()
    available = installed_engines()
    if name == "auto":
        follows = plan.mode == "fused" and plan.moments == "fp32" and train.optimizer == "adamw"
        artifacts = bool(bundle.manifest.ladder.ort_training)
        name = "ort-training" if "ort-training" in available and artifacts and follows else "stock"
    if name == "stock":
        from edgeladder.device.engine.stock import StockEngine

        return StockEngine(bundle, plan, train, loss)
    if name != "ort-training":
        raise ConfigError(
            f"unknown engine {name!r}", remedy="use --engine auto, stock or ort-training"
        )
    if "ort-training" not in available:
        raise ConfigError(
            "onnxruntime-training is not installed here",
            where="--engine ort-training",
            remedy="pip uninstall -y onnxruntime && pip install onnxruntime-training-cpu==1.19.2 "
            "(x86-64 Linux, Python <= 3.12), or use --engine stock",
        )
    from edgeladder.device.engine.ort_training import OrtTrainingEngine

    return OrtTrainingEngine(bundle, plan, train, loss)
