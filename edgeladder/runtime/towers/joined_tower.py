"""A frozen tower as one file, for providers that run it whole: one engine, nothing copied between.

Cut into segments a tower would cross to an accelerator and back at every cut, and each segment
would be compiled for itself. The segments' files are joined once per machine, in the user's cache
folder, named after all that decides what the tower gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core import disk
from edgeladder.core.errors import IntegrityError
from edgeladder.core.files import storage_errors
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT, parse, text
from edgeladder.runtime.portable_graph import make_portable

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle, Side

BATCH = "N"  # the joined file's name of its first dimension, which a session is given a size for
_VERSION = 2  # of how files are joined: part of their names


def joined_tower(bundle: Bundle, side: Side, folder: Path) -> Path:
    """The joined file of a tower; written now if it is not there.

    Its inputs and outputs have the segments' names: pixels or tokens in, taps and embeddings out.

    Args:
        folder: where it is looked for and written.

    Raises:
        ConfigError: the tower does not fit the 2 GiB of one ONNX file.
        StorageError: no space for it.
    """
    path = folder / f"{side}-{bundle.tower_key(side)[:16]}-{_VERSION}.onnx"
    if not path.is_file():
        with storage_errors(path):
            disk.make_folders(folder)
        _join(bundle, side).write(path, {}, "edgeladder")
    return path


def _join(bundle: Bundle, side: Side) -> Graph:
    tower = getattr(bundle.manifest, side)
    graph = Graph()
    for index, segment in enumerate(tower.segments):
        edge = {item.name: item.name for item in [*segment.inputs, *segment.outputs]}
        graph.join(bundle.path(segment.file), f"segment_{index}/", edge)
    first = tower.segments[0]
    for item in first.inputs:
        kind = _element_type(bundle.path(first.file), item.name)
        graph.declare(item.name, kind, [BATCH, *item.shape], out=False)
    shapes = {item.name: item.shape for segment in tower.segments for item in segment.outputs}
    wanted = [*(tap.name for tap in tower.taps), tower.embedding, tower.embedding_pre]
    for name in dict.fromkeys(name for name in wanted if name):
        graph.declare(name, FLOAT, [BATCH, *shapes[name]], out=True)
    make_portable(graph)  # other providers know the standard's operators
    return graph


def _element_type(path: Path, name: str) -> int:
    """TensorProto.DataType of a model's input: tokens are whole numbers of one width or other."""
    graph = next((v for n, v in parse(path.read_bytes()) if n == 7 and isinstance(v, bytes)), b"")
    for number, value in parse(graph):
        if number == 11 and isinstance(value, bytes):
            fields = dict(parse(value))
            if text(fields.get(1, b"")) == name and isinstance(fields.get(2), bytes):
                kind = _tensor_type(fields[2]).get(1)
                if isinstance(kind, int):
                    return kind
    raise IntegrityError(f"no input {name!r} of a known type", where=str(path))


def _tensor_type(value_type: int | bytes) -> dict[int, int | bytes]:
    inner = dict(parse(value_type)).get(1) if isinstance(value_type, bytes) else None
    return dict(parse(inner)) if isinstance(inner, bytes) else {}
