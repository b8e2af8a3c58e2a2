"""Deep prompts: further keys and values of the rung's self-attention.

As VPT-deep (Jia et al., arXiv:2203.12119) has them in a transformer's blocks, here in the ladder's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgeladder.host.model.prompts.base import DEVIATION, PromptMethod, RungPrompts, register


@register("token")
class TokenPrompts(PromptMethod):
    """Read by every token of every sample; they read nothing themselves."""

    size = 1 / DEVIATION  # of the normed rows that they lie beside

    def attended(self, prompts: RungPrompts) -> Sequence[Tensor]:
        """All of them."""
        return prompts.tokens
