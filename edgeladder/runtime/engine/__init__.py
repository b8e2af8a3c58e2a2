"""Two engines behind one protocol: stock onnxruntime and onnxruntime-training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeladder.core.errors import ConfigError
from edgeladder.runtime.engine.environment import (
    TRAINING_REQUIREMENT,
    check_environment,
    installed_engines,
)
from edgeladder.runtime.engine.protocol import Engine, StepInputs, StepPlan, StepResult

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.config import LossConfig, TrainConfig

__all__ = [
    "Engine",
    "StepInputs",
    "StepPlan",
    "StepResult",
    "check_environment",
    "installed_engines",
    "open_engine",
    "require_asked",
    "require_known",
]


def require_known(name: str) -> None:
    """Refuse what is no engine's name, before anything is computed for it.

    Raises:
        ConfigError: neither `auto` nor an engine, installed or not, nor `module:factory`.
    """
    if name not in ("auto", "stock", "ort-training") and ":" not in name:
        raise ConfigError(
            f"unknown engine {name!r}", remedy="use --engine auto, stock or ort-training"
        )


def require_asked(saved: str, asked: str, *, where: str) -> None:
    """Refuse to import what a run's file names, unless whoever continues the run names it too.

    Args:
        saved: the engine of the run's `config.yaml`, which may have come from anywhere.
        asked: the engine that was asked for now.

    Raises:
        ConfigError: `saved` is code of somebody's own, and was not asked for.
    """
    if ":" in saved and saved != asked:
        raise ConfigError(
            f"the run's config.yaml names an engine of its own, {saved[:100]!r}, which would be "
            "imported and run",
            where=where,
            remedy="where you know that code, name it too: --engine MODULE:FACTORY",
        )


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
        from edgeladder.runtime.engine.stock import StockEngine

        return StockEngine(bundle, plan, train, loss)
    require_known(name)
    if "ort-training" not in available:
        raise ConfigError(
            "onnxruntime-training is not installed here",
            where="--engine ort-training",
            remedy="pip install 'edgeladder[ort-training]' (x86-64 Linux, Python <= 3.12: "
            f"{TRAINING_REQUIREMENT}), or use --engine stock",
        )
    from edgeladder.runtime.engine.training_build import OrtTrainingEngine

    return OrtTrainingEngine(bundle, plan, train, loss)
