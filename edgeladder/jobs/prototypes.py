"""SPT: prompts that begin as prototypes of the training activations.

Self-prompt tuning (Wang et al., ICML 2024): a rung's prompts are centres of k-means over the
tokens that enter it, projected as the rung sees them, or simply a random sample of those tokens,
which is nearly as good. Training pictures only, from the cache; no step is needed. The ladder's
way out is zero at the start, so that it still begins at zero-shot.

Prompts that lie beside the rows of the rung's attention begin as the layer norm before it makes
those; others take the tokens' direction (`PromptKind.prototypes`). All are stored at the size that
the random ones have, which the ladder's graph multiplies: AdamW's steps do not depend on a
parameter's size, so that at the tokens' own (1, not 0.02) they would be nearly frozen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeladder.core.prompt_kinds import KINDS

if TYPE_CHECKING:
    from edgeladder.core.config import PromptConfig
    from edgeladder.core.manifest import LadderRecord
    from edgeladder.runtime.engine.protocol import StepInputs

CLASSES = 128  # whose names the text side looks at, the first ones
TOKENS_PER_RUNG = 1024  # k-means looks at so many, of as many pictures as possible
_ROUNDS = 20  # of Lloyd's algorithm

Kind = Literal["prototypes", "samples"]


def gather(
    ladder: LadderRecord,
    parameters: dict[str, np.ndarray],
    windows: Iterable[StepInputs],
    side: str,
) -> list[np.ndarray]:
    """Projected tokens that enter the rungs, (n, d) each, in the tower's order.

    Args:
        ladder: the manifest's `ladder` record.
        parameters: by name; `{side}_down` projects.
        windows: training pictures, plain view (or, for `text`, any window: its classes).
        side: image or text.
    """
    groups = [group for group in ladder.groups if group.side == side]
    found: dict[int, list[np.ndarray]] = {k: [] for group in groups for k in group.taps}
    for inputs in windows:
        if side == "image":
            taps = inputs.image_taps(0, len(inputs.labels))
        else:
            taps = inputs.text_taps(0, min(len(inputs.text_embedding), CLASSES))
        for place, (group, stack) in enumerate(zip(groups, taps, strict=True)):
            weight = parameters[f"{side}_down.weights.{place}"]  # (L, W, d)
            bias = parameters[f"{side}_down.bias.{place}"]  # (L, 1, d)
            for number, index in enumerate(group.taps):
                rows = stack[number].reshape(-1, group.width)  # (T * n, W)
                found[index].append(rows @ weight[number] + bias[number])
        if side == "text":
            break
    return [np.concatenate(found[index]) for index in sorted(found)]


def prototypes(tokens: np.ndarray, count: int, kind: Kind, seed: int) -> np.ndarray:
    """(n, d) -> (count, d): k-means centres, or tokens of the set; all of them and again if few."""
    random = np.random.default_rng(seed)
    chosen = tokens[random.permutation(len(tokens))[:TOKENS_PER_RUNG]].astype(np.float64)
    if len(chosen) <= count or kind == "samples":
        return chosen[np.arange(count) % len(chosen)]
    centres = _spread_out(chosen, count, random)
    for _ in range(_ROUNDS):
        nearest = _distances(chosen, centres).argmin(axis=1)
        moved = np.stack(
            [
                chosen[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k]
                for k in range(count)
            ]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres


def _spread_out(tokens: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): each start drawn by its squared distance."""
    centres = [tokens[0]]
    for _ in range(count - 1):
        distance = _distances(tokens, np.stack(centres)).min(axis=1)
        total = distance.sum()
        chance = distance / total if total > 0 else None
        centres.append(tokens[random.choice(len(tokens), p=chance)])
    return np.stack(centres)


def _distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :]
    return np.asarray(np.maximum(norms - 2 * (left @ right.T), 0.0))


def initial_prompts(
    ladder: LadderRecord,
    config: PromptConfig,
    parameters: dict[str, np.ndarray],
    windows: Iterable[StepInputs],
    seed: int,
) -> dict[str, np.ndarray]:
    """New values of the prompts' tokens, by parameter name.

    Args:
        ladder: the manifest's `ladder` record.
        config: `ladder.prompts` of the profile.
        parameters: the untrained ladder's.
        windows: the training pictures, plain view; may be gone through twice.
        seed: of the sample.

    Image and text prompts that are coupled begin as the pictures' tokens; where pictures have none
    the prompts begin as the classes'. A rung without taps of
    that side (its tower has fewer) takes those of the other.
    """
    if config.initialize == "random":
        return {}
    windows = list(windows)
    names = ladder.prompts
    rungs, length, _ = parameters[names.text].shape
    found = {
        side: gather(ladder, parameters, windows, side)  # (n, d) per tap; joins at the later rungs
        for side in ("image", "text")
    }
    sides = ("text", "image") if names.image in parameters else ("image",)
    if not names.of_pictures:
        sides = ("text",)
    made = {}
    for name, side in zip(names.sets(parameters), sides, strict=True):
        other = "text" if side == "image" else "image"
        rows = []
        for rung in range(rungs):
            taps = found[side]
            place = rung - (rungs - len(taps))
            if place < 0:
                taps = found[other]
                place = rung - (rungs - len(taps))
            rows.append(prototypes(taps[place], length, config.initialize, seed + rung))
        stacked = np.stack(rows)
        if KINDS[config.kind].prototypes == "rows":
            stacked -= stacked.mean(axis=-1, keepdims=True)
        made[name] = _at_size_of(stacked, parameters[name])
    return made


def _at_size_of(rows: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Rows with the root mean square of another array."""
    size = np.sqrt(np.mean(rows.astype(np.float64) ** 2, axis=-1, keepdims=True))
    wanted = np.sqrt(np.mean(model.astype(np.float64) ** 2))
    return np.asarray(rows * (wanted / np.maximum(size, 1e-12)), np.float32)
