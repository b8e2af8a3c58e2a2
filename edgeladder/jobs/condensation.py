"""Prompt condensation: score every prompt, keep the best share over all rungs, fine-tune those.

After Kim et al., arXiv:2305.17223, who score by a first-order estimate of how much the loss would
change without the prompt, sum_d dL/dp_d p_d. Here the change itself is measured: exact, and cheap
enough, forward passes of a small network over cached activations. (In older bundles prompts pass
through a layer norm, and the estimate is zero whatever a prompt is worth.)

    S_{l,i} = mean over pictures of | L(x) - L(x without prompt i of rung l) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.job import Condensed
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.jobs.run_directory import read_metrics
from edgeladder.runtime.logits import ClassLogits, class_embeddings, windows

if TYPE_CHECKING:
    from edgeladder.jobs.loop import TrainLoop
    from edgeladder.runtime.engine.protocol import Engine, StepInputs

PICTURES = 128  # that scores are measured on, classes in turn

Progress = Callable[[int, int], None]


def losses(engine: Engine, inputs: StepInputs, logits: ClassLogits, chunk: int) -> np.ndarray:
    """Cross-entropy of every picture, (n,) float64."""
    classes = class_embeddings(engine, inputs, chunk).tuned
    found = np.empty(len(inputs.labels))
    for window, given in windows(inputs, chunk):
        image = engine.encode_image(given.taps, given.embedding, given.extra)
        shifted = logits.similarity(image.astype(np.float64), classes)
        shifted -= shifted.max(axis=1, keepdims=True)
        rows = np.arange(len(shifted)), inputs.labels[window]
        found[window] = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows]
    return found


def scores(
    engine: Engine,
    pictures: Sequence[StepInputs],
    logits: ClassLogits,
    *,
    names: PromptTensors,
    chunk: int,
    progress: Progress = lambda done, total: None,
) -> np.ndarray:
    """How much the loss changes without each prompt: (L, m), zero for those already dropped.

    Args:
        engine: with a ladder that has masks; it is left as it was.
        pictures: training pictures, in windows against the same classes.
        logits: the formula.
        names: which of the ladder's tensors are prompts.
        chunk: pictures or classes encoded at a time.
        progress: told how many prompts are scored.
    """
    mask = engine.buffers()[names.mask]
    found = np.zeros(mask.shape)
    before = [losses(engine, inputs, logits, chunk) for inputs in pictures]
    places = np.argwhere(mask > 0)
    for number, (rung, prompt) in enumerate(places):
        without = mask.copy()
        without[rung, prompt] = 0
        engine.set_buffers({names.mask: without})
        changes = [
            np.abs(losses(engine, inputs, logits, chunk) - was)
            for inputs, was in zip(pictures, before, strict=True)
        ]
        found[rung, prompt] = np.concatenate(changes).mean()
        progress(number + 1, len(places))
    engine.set_buffers({names.mask: mask})
    return found


def keep(found: np.ndarray, mask: np.ndarray, share: float) -> np.ndarray:
    """The mask of the best `share` of all prompts over all rungs, at least one.

    Args:
        found: (L, m) scores.
        mask: (L, m) before; what it left out stays out.
        share: of L * m.
    """
    count = min(max(1, round(share * mask.size)), int((mask > 0).sum()))
    ranked = np.where(mask > 0, found, -np.inf).ravel()
    best = np.argsort(-ranked, kind="stable")[:count]
    kept = np.zeros(mask.size, np.float32)
    kept[best] = 1
    return kept.reshape(mask.shape)


@dataclass
class Condense:
    """Drops prompts when training has reached `at`, and holds the rest of the ladder still after.

    Args:
        at: step before which it happens.
        share: of the prompts that stay.
        only_prompts: fine-tuning changes nothing else.
        pictures: opens the training pictures' windows.
        logits: the formula.
        names: which of the ladder's tensors are prompts.
        chunk: pictures or classes encoded at a time.
    """

    at: int
    share: float
    only_prompts: bool
    pictures: Callable[[], Iterable[StepInputs]]
    logits: ClassLogits
    names: PromptTensors
    chunk: int
    name: str = "condense"
    done: bool = False
    _frozen: dict[str, np.ndarray] | None = None

    def before(self, loop: TrainLoop) -> None:
        """Condense where it is time; once, however often training is resumed."""
        if loop.step < self.at:
            return
        if not self.done:
            self._condense(loop)
        if self.only_prompts and self._frozen is None:
            self._frozen = {
                name: value
                for name, value in loop.engine.parameters().items()
                if not name.startswith(self.names.prefix)
            }

    def after(self, loop: TrainLoop) -> None:
        """Undo what a step of fine-tuning did to anything but prompts."""
        if self._frozen is not None:
            loop.engine.set_parameters(self._frozen)

    def finish(self, loop: TrainLoop) -> None:
        """Condense without fine-tuning, where there are no steps for it."""
        if not self.done and loop.step >= self.at:
            self._condense(loop)

    def _condense(self, loop: TrainLoop) -> None:
        engine = loop.engine
        loop.apply_average()
        if loop.average is not None:
            loop.average = engine.parameters()

        def told(done: int, total: int) -> None:
            loop.tell(note=f"scoring prompts {done}/{total}")

        # sessions of training make room for those of encoding, and these for those again: the plan
        # has room for one kind; each opens anew when it is used
        loop.batches.trim()
        engine.close()
        mask = engine.buffers()[self.names.mask]
        found = scores(
            engine,
            list(self.pictures()),
            self.logits,
            names=self.names,
            chunk=self.chunk,
            progress=told,
        )
        engine.close()
        kept = keep(found, mask, self.share)
        engine.set_buffers({self.names.mask: kept})
        self.done = True
        loop.record(
            {
                "kind": "condense",
                "step": loop.step,
                "kept": int(kept.sum()),
                "of": int(mask.size),
                "before": int(mask.sum()),
                "per_rung": kept.sum(axis=1).astype(int).tolist(),
                "scores": np.round(found, 9).tolist(),
            }
        )

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {"done": self.done}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`."""
        self.done = bool(state["done"])


def summary(metrics: Path, started_from: Path | None = None) -> Condensed | None:
    """What a run's records say of its condensation; None where there was none.

    Args:
        metrics: the run's `metrics.jsonl`.
        started_from: that of the run it began from, whose steps are those of before.
    """
    event: dict[str, Any] | None = None
    steps: list[tuple[int, float]] = []
    for record in read_metrics(metrics):
        if record["kind"] == "condense":
            event = record
        elif record["kind"] == "step":
            steps.append((record["step"], record["seconds"]))
    if event is None:
        return None
    before = [seconds for step, seconds in steps if step <= event["step"]]
    if not before and started_from is not None and started_from.is_file():
        earlier = (r for r in read_metrics(started_from) if r["kind"] == "step")
        before = [record["seconds"] for record in earlier]
    return Condensed(
        prompts_before=event["before"],
        prompts_after=event["kept"],
        step_ms_before=_median_ms(before),
        step_ms_after=_median_ms([s for step, s in steps if step > event["step"]]),
    )


def _median_ms(seconds: list[float]) -> float | None:
    return round(1000 * sorted(seconds)[len(seconds) // 2], 3) if seconds else None
