"""No prompts: the rung alone, and no tensor."""

from __future__ import annotations

import torch

from tests.host.model.rungs import attended, climbed, fed, scene


def test_the_rung_is_alone():
    it = scene("none")
    torch.testing.assert_close(climbed(it), fed(it, attended(it)))
    assert not it.method.state_dict()
