"""Token prompts against attention written out per sample and head."""

from __future__ import annotations

import pytest
import torch

from tests.host.model.rungs import WIDTH, attend, climbed, fed, kept, norm, scene, sides


@pytest.mark.parametrize("condensed", [False, True])
def test_they_are_further_keys_and_values_of_the_self_attention(condensed):
    it = scene("token", condensed=condensed)
    out = []
    for rows, prompts in zip(sides(it.state), it.given.tokens, strict=True):
        piece = rows.clone()
        for n in range(rows.shape[1]):
            own = norm(rows[:, n])
            seen = torch.cat([own, kept(prompts, condensed)])
            piece[:, n] += attend(it.rung, own, seen) @ it.rung.out
        out.append(piece.reshape(-1, WIDTH))
    torch.testing.assert_close(climbed(it), fed(it, torch.cat(out)))
