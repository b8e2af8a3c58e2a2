"""Pictures for checks where no others are at hand: the same everywhere."""

from __future__ import annotations

import numpy as np

PICTURES = 8  # that a check asks about


def drawn_pictures(side: int) -> np.ndarray:
    """Coloured waves of several lengths and directions with a disc on them: (8, S, S, 3) uint8.

    A frozen tower sees edges, colours and shapes in them, unlike in noise, which it takes for one
    and the same class.
    """
    generator = np.random.default_rng(0)
    across, down = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))  # (S, S) each
    squares = np.empty((PICTURES, side, side, 3), np.uint8)
    for number in range(PICTURES):
        angle, waves = generator.uniform(0, np.pi), generator.uniform(1, 12)
        phase = np.pi * waves * (across * np.cos(angle) + down * np.sin(angle))
        light = 0.5 + 0.4 * np.sin(phase[..., None] + generator.uniform(0, 2 * np.pi, 3))
        centre, radius = generator.uniform(-0.5, 0.5, 2), generator.uniform(0.2, 0.6)
        disc = (across - centre[0]) ** 2 + (down - centre[1]) ** 2 < radius**2
        light[disc] = generator.uniform(0, 1, 3)
        squares[number] = np.rint(255 * light)
    return squares
