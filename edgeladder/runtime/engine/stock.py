"""The stock engine: the whole training step as ordinary ONNX graphs on plain onnxruntime."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import ConfigError
from edgeladder.core.initial import initial_values
from edgeladder.runtime.engine.in_place import may_overwrite
from edgeladder.runtime.engine.optimizer_step import Layout, Optimizer
from edgeladder.runtime.engine.protocol import StepInputs, StepPlan, StepResult
from edgeladder.runtime.engine.targets import soft_targets
from edgeladder.runtime.kept_prompts import kept_places
from edgeladder.runtime.logits import ClassLogits
from edgeladder.runtime.session import Bound, open_session

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.config import LossConfig, TrainConfig


_ZERO_AT_START = ("project", "up", "image_up", "text_up")  # zero at the start: the ladder's way out


class StockEngine:
    """Fused, recomputed or chunked steps over one flat vector of parameters."""

    name = "stock"

    def __init__(self, bundle: Bundle, plan: StepPlan, train: TrainConfig, loss: LossConfig):
        ladder = bundle.manifest.ladder
        self.bundle, self.plan, self.loss = bundle, plan, loss
        self.logits = ClassLogits.of(bundle.manifest.model)
        self.groups = {
            side: [g.input for g in ladder.groups if g.side == side] for side in ("image", "text")
        }
        self.layout = Layout(ladder.parameters)
        self._flat = np.zeros(self.layout.size, np.float32)
        self._gradients = np.zeros(self.layout.size, np.float32)
        self._views = self.layout.views(self._flat)
        # the last step's, by parameter name, before clipping
        self.gradient_views = self.layout.views(self._gradients)
        self._buffers: dict[str, np.ndarray] = {}
        # one tensor at a time: a second copy of all of them would leave holes in the heap
        for name, value in initial_values(bundle):
            if name in self._views:
                self._views[name][...] = value
            else:
                self._buffers[name] = np.ascontiguousarray(value)
        self._names = ladder.prompts
        self._places = kept_places(self._buffers, self._names)
        graphs = {name: bundle.path(record.file) for name, record in ladder.graphs.items()}
        self._graphs = graphs
        self._sessions: dict[str, Bound] = {}
        self._loss = np.zeros((), np.float32)
        self._text = np.empty((0, 0), np.float32)  # kept: made anew each step it tears the heap
        self._chunk = plan.chunk if plan.mode == "chunked" else None
        # onnxruntime's own values per picture or class, where the bundle has graphs to hold them
        self._residual_bytes = {
            side: ladder.graphs[f"forward_saved_{side}"].residual_bytes
            for side in ("image", "text")
            if f"forward_saved_{side}" in ladder.graphs
        }
        self._proximal = 0.0
        self.optimizer = Optimizer(graphs, self.layout, self._flat, self._gradients, train, plan)

    # -- sessions ---------------------------------------------------------------------------

    def _session(self, name: str) -> Bound:
        """A graph's session, opened at its first use with parameters and gradients bound."""
        if name not in self._sessions:
            plan = self.plan
            session = open_session(
                self._graphs[name], plan.threads, as_written=True, arena=plan.arena
            )
            bound = Bound(session)
            bound.bind_inputs({**self._views, **self._buffers, **self._places})
            gradients = self.gradient_views.items()
            bound.bind_inputs({f"sum/{name}": view for name, view in gradients})
            bound.bind_outputs({f"gradient/{name}": view for name, view in gradients})
            bound.bind_outputs({"loss": self._loss})
            self._sessions[name] = bound
        return self._sessions[name]

    # -- one step ---------------------------------------------------------------------------

    def step(self, inputs: StepInputs, learning_rate: float) -> StepResult:
        """Loss, gradients and one update; see `Engine.step`."""
        loss = self.gradients(inputs)
        norm = self.optimizer.update(learning_rate)
        return StepResult(loss, norm)

    def gradients(self, inputs: StepInputs) -> float:
        """Loss and gradients of one batch, left in `gradient_views`."""
        targets = soft_targets(inputs, self.loss, self.logits)
        if self._chunk is None:
            self._fused(inputs, targets)
        else:
            self._chunked(inputs, targets, self._chunk)
        return float(self._loss) + self._add_proximal()

    def set_proximal(self, strength: float) -> None:
        """Add strength * |W|^2 to the loss, over the weights that are zero at zero-shot.

        ProLIP's lambda |W - W0|^2 (arXiv:2410.05270) on the change of CLIP's projection, and the
        same on the ladder's way out.
        """
        self._proximal = float(strength)

    def _add_proximal(self) -> float:
        """The proximal term's gradient into the gradients; its share of the loss."""
        if not self._proximal:
            return 0.0
        total = 0.0
        for name in _ZERO_AT_START:
            if name in self._views:
                weight = self._views[name]
                self.gradient_views[name] += np.float32(2 * self._proximal) * weight
                total += float(np.vdot(weight, weight))
        return self._proximal * total

    def _fused(self, inputs: StepInputs, targets: np.ndarray) -> None:
        bound = self._session("recompute" if self.plan.mode == "recompute" else "fused")
        count, classes = targets.shape
        arrays = {"targets": targets, "image_embedding": inputs.image_embedding}
        arrays["text_embedding"] = inputs.text_embedding[:]
        arrays.update(inputs.image_extra)
        arrays.update(zip(self.groups["image"], inputs.image_taps(0, count), strict=True))
        arrays.update(zip(self.groups["text"], inputs.text_taps(0, classes), strict=True))
        bound.bind_inputs(arrays)
        bound.run()
        bound.release(arrays)  # or they would still be there while the next batch is read

    def _chunked(self, inputs: StepInputs, targets: np.ndarray, chunk: int) -> None:
        """Encode, loss by embedding, re-encode and go backward: exact, memory set by the chunk."""
        if len(self._text) != len(inputs.text_embedding):
            self._text = np.empty(inputs.text_embedding.shape, np.float32)
        tuned = {"image": np.empty_like(inputs.image_embedding), "text": self._text}
        held: dict[tuple[str, int], dict[str, Any]] = {}
        # a smaller chunk is asked for when memory is short: nothing is held then
        room: float = self.plan.hold_bytes if chunk == self.plan.chunk else 0
        for side, window, arrays in self._windows(inputs, chunk):
            size = self._held_bytes(side, window.stop - window.start)
            keep = size <= room
            bound = self._session(f"{'forward_saved' if keep else 'encode'}_{side}")
            bound.bind_inputs(arrays)
            if keep:
                room -= size
                found = bound.run_holding()
                tuned[side][window] = found[side].numpy()
                held[side, window.start] = found
            else:
                bound.bind_outputs({side: tuned[side][window]})
                bound.run()
            bound.release(arrays)
            arrays.clear()
        # of many classes either is large, and the one is not read any more when the other is made
        in_place = may_overwrite(self._graphs["loss"], "text", "text_gradient")
        gradients = {
            "image_gradient": np.empty_like(tuned["image"]),
            "text_gradient": tuned["text"] if in_place else np.empty_like(tuned["text"]),
        }
        bound = self._session("loss")
        bound.bind_inputs({**tuned, "targets": targets})
        bound.bind_outputs(gradients)
        bound.run()
        self._gradients[:] = 0
        for side, window, arrays in self._windows(inputs, chunk):
            name = f"{side}_gradient"
            residuals = held.pop((side, window.start), None)
            bound = self._session(f"{'backward' if residuals is None else 'backward_saved'}_{side}")
            bound.bind_inputs({**arrays, name: gradients[name][window]})
            bound.bind_values(residuals or {})
            bound.run()
            bound.release([*arrays, *(residuals or {})])
            arrays.clear()

    def _held_bytes(self, side: str, samples: int) -> float:
        """Bytes of a chunk's residuals; infinite where the bundle has no graphs to hold them."""
        per_sample = self._residual_bytes.get(side)
        return math.inf if per_sample is None else per_sample * samples

    def _windows(
        self, inputs: StepInputs, chunk: int
    ) -> Iterator[tuple[str, slice, dict[str, np.ndarray]]]:
        """Taps and embeddings of either side, a chunk at a time, in windows of equal size."""
        plan = self.plan
        classes = chunk
        if plan.class_chunk and plan.chunk:  # a smaller chunk keeps the proportion
            classes = chunk * plan.class_chunk // plan.chunk
        for side, most in (("image", chunk), ("text", max(1, classes))):
            embedding = getattr(inputs, f"{side}_embedding")
            runs = -(-len(embedding) // most)
            edges = [len(embedding) * run // runs for run in range(runs + 1)]
            for start, stop in itertools.pairwise(edges):
                window = slice(start, stop)
                read = inputs.image_taps if side == "image" else inputs.text_taps
                taps = read(window.start, window.stop)
                arrays = dict(zip(self.groups[side], taps, strict=True))
                arrays[f"{side}_embedding"] = embedding[window]
                if side == "image":
                    arrays.update({n: v[window] for n, v in inputs.image_extra.items()})
                del taps  # the caller empties `arrays` before the next window is read
                yield side, window, arrays

    # -- inference --------------------------------------------------------------------------

    def encode_image(
        self, taps: list[np.ndarray], embedding: np.ndarray, extra: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Tuned picture embeddings (n, D); see `Engine.encode_image`."""
        return self._encode("image", taps, {"image_embedding": embedding, **extra})

    def encode_text(self, taps: list[np.ndarray], embedding: np.ndarray) -> np.ndarray:
        """Tuned class embeddings (n, D); see `Engine.encode_text`."""
        return self._encode("text", taps, {"text_embedding": embedding})

    def _encode(
        self, side: str, taps: list[np.ndarray], arrays: dict[str, np.ndarray]
    ) -> np.ndarray:
        tuned = np.empty_like(arrays[f"{side}_embedding"])
        bound = self._session(f"encode_{side}")
        bound.bind_inputs({**arrays, **dict(zip(self.groups[side], taps, strict=True))})
        bound.bind_outputs({side: tuned})
        bound.run()
        return tuned

    # -- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Flat parameters, moments, step and buffers: views, to be written before the next step."""
        return {
            "parameters": self._flat,
            **self.optimizer.moments,
            "step": np.array([self.optimizer.step_count], np.int64),
            **{f"buffer/{name}": value for name, value in self._buffers.items()},
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `state()`.

        Raises:
            ConfigError: the state is of another optimiser, kind of moments or ladder.
        """
        mine = self.state()
        for name, value in mine.items():
            if name not in state or state[name].shape != value.shape:
                raise ConfigError(
                    f"the checkpoint has no {name} of shape {value.shape}",
                    remedy="resume with the optimiser, moments and bundle the run began with",
                )
        for name, value in mine.items():
            if name != "step":
                value[...] = state[name]
        self.optimizer.step_count = int(state["step"][0])
        self._choose_prompts()

    def parameters(self) -> dict[str, np.ndarray]:
        """Trained tensors by name (copies)."""
        return {name: view.copy() for name, view in self._views.items()}

    def set_parameters(self, values: dict[str, np.ndarray]) -> None:
        """Replace parameters by name."""
        for name, value in values.items():
            self._views[name][...] = value

    def buffers(self) -> dict[str, np.ndarray]:
        """Untrained state by name (copies)."""
        return {name: value.copy() for name, value in self._buffers.items()}

    def set_buffers(self, values: dict[str, np.ndarray]) -> None:
        """Replace buffers by name."""
        for name, value in values.items():
            self._buffers[name][...] = value
        self._choose_prompts()

    def _choose_prompts(self) -> None:
        """Let the graphs compute with the prompts that the mask keeps."""
        self._places = kept_places(self._buffers, self._names)
        for bound in self._sessions.values():
            bound.bind_inputs(self._places)

    def set_chunk(self, chunk: int | None) -> None:
        """Chunk the steps from now on; None: as planned."""
        planned = self.plan.chunk if self.plan.mode == "chunked" else None
        self._chunk = planned if chunk is None else max(1, chunk)
        if self._chunk is not None:  # the fused graph's session is memory we were asked to free
            for name in ("fused", "recompute"):
                self._sessions.pop(name, None)

    def close(self) -> None:
        """Free sessions; one that is used again opens anew."""
        self._sessions.clear()
