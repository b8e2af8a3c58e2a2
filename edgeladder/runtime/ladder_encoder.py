"""The ladder for inference alone: two graphs and the parameters, no gradients and no optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import IntegrityError
from edgeladder.runtime.kept_prompts import kept_places
from edgeladder.runtime.session import Bound, open_session

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

Array = np.ndarray


class Encoder:
    """Encodes activations with fixed parameters; what `Engine` offers for inference."""

    def __init__(self, bundle: Bundle, parameters: dict[str, Array], threads: int):
        """Check the parameters against the bundle's ladder.

        Args:
            parameters: by name, the ladder's buffers among them.

        Raises:
            IntegrityError: names, shapes or types are not the ladder's.
        """
        ladder = bundle.manifest.ladder
        shapes = {r.name: tuple(r.shape) for r in ladder.parameters}
        shapes |= {r.name: tuple(r.shape) for r in ladder.buffers}
        kinds = {r.name: r.dtype for r in ladder.buffers}
        for name, shape in shapes.items():
            given, kind = parameters.get(name), kinds.get(name, "float32")
            if given is None or given.shape != shape or given.dtype.name != kind:
                found = "lacks it" if given is None else f"has {list(given.shape)} {given.dtype}"
                raise IntegrityError(
                    f"the ladder's {name} is {list(shape)} {kind}, the adapter {found}",
                    where=str(bundle.folder),
                    remedy="use the bundle that the adapter was trained on",
                )
        self.values = {name: np.ascontiguousarray(parameters[name]) for name in shapes}
        self.values |= kept_places(parameters, ladder.prompts)
        self._groups = {
            side: [g.input for g in ladder.groups if g.side == side] for side in ("image", "text")
        }
        self._graphs = {
            side: bundle.path(ladder.graphs[f"encode_{side}"].file) for side in ("image", "text")
        }
        self._threads = threads
        self._sessions: dict[str, Bound] = {}

    def encode_image(self, taps: list[Array], embedding: Array, extra: dict[str, Array]) -> Array:
        """Tuned picture embeddings (n, D), as `Engine.encode_image`."""
        return self._encode("image", taps, {"image_embedding": embedding, **extra})

    def encode_text(self, taps: list[Array], embedding: Array) -> Array:
        """Tuned class embeddings (n, D), as `Engine.encode_text`."""
        return self._encode("text", taps, {"text_embedding": embedding})

    def _encode(self, side: str, taps: list[Array], arrays: dict[str, Array]) -> Array:
        if side not in self._sessions:
            bound = Bound(open_session(self._graphs[side], self._threads))
            bound.bind_inputs(self.values)
            self._sessions[side] = bound
        tuned = np.empty(arrays[f"{side}_embedding"].shape, np.float32)
        bound = self._sessions[side]
        bound.bind_inputs({**arrays, **dict(zip(self._groups[side], taps, strict=True))})
        bound.bind_outputs({side: tuned})
        bound.run()
        return tuned

    def close(self) -> None:
        """Free the sessions."""
        self._sessions.clear()
