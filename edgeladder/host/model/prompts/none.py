"""No prompts: the ladder alone, as in LST."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import PreparedPrompts, PromptMethod, register


@register("none")
class NoPrompts(PromptMethod):
    """Holds no tensor and changes nothing."""

    def __init__(self, config: LadderConfig, rungs: int):
        nn.Module.__init__(self)  # not the base's, which draws tokens
        self.condensed = False

    def prepare(self, pictures: Sequence[Tensor], tokens: int) -> PreparedPrompts:
        """Nothing for either side."""
        return PreparedPrompts(self, ((), ()))
