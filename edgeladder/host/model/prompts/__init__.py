"""Prompts of the ladder: learnable tokens of every rung, one module for each way they act.

Every module here is imported, so that a new kind registers itself by lying in this folder.
"""

from __future__ import annotations

import importlib
import pkgutil

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import (
    METHODS,
    PreparedPrompts,
    PromptMethod,
    RungPrompts,
)

__all__ = ["METHODS", "PreparedPrompts", "PromptMethod", "RungPrompts", "build_prompts"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build_prompts(config: LadderConfig, rungs: int) -> PromptMethod:
    """The prompts that a profile asks for, drawn from torch's global generator."""
    return METHODS[config.prompts.kind](config, rungs)
