"""Cross prompts against attention written out per row and head."""

from __future__ import annotations

import pytest
import torch

from tests.host.model.rungs import attend, attended, climbed, fed, per_row, scene


@pytest.mark.parametrize("condensed", [False, True])
def test_rows_attend_to_them_after_the_self_attention(condensed):
    it = scene("cross", condensed=condensed)
    state = attended(it)

    def read(row, prompts):
        return attend(it.rung, row[None], prompts)[0] @ it.rung.out

    expected = fed(it, state + per_row(it, state, read, condensed))
    torch.testing.assert_close(climbed(it), expected)
