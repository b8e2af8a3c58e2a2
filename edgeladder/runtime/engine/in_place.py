"""Whether an output of a graph may be written where one of its inputs is.

A session opened `as_written` runs nodes one after another in the order of the file, so what is
read for the last time before a node may be overwritten by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from edgeladder.core.protobuf import fields_of

_GRAPH, _NODE = 7, 1  # fields of onnx.proto3's ModelProto and GraphProto
_INPUT, _OUTPUT = 1, 2  # of its NodeProto


@functools.cache
def may_overwrite(path: Path, source: str, target: str) -> bool:
    """Whether no node reads `source` from the one on that makes `target`.

    Args:
        path: an ONNX file without subgraphs, its nodes in order, as the format asks.
        source: an input of the graph.
        target: an output of the same shape and type.

    Raises:
        IntegrityError: not an ONNX file, or cut short.
    """
    reached = False
    for reads, makes in _nodes(path):
        reached = reached or target.encode() in makes
        if reached and source.encode() in reads:
            return False
    return reached


def _nodes(path: Path) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """What every node of the graph reads and makes, in order."""
    for field, graph in fields_of(memoryview(path.read_bytes())):
        if field != _GRAPH or isinstance(graph, int):
            continue
        for place, node in fields_of(graph):
            if place != _NODE or isinstance(node, int):
                continue
            names = [
                (number, bytes(value))
                for number, value in fields_of(node)
                if not isinstance(value, int)
            ]
            reads, makes = ([v for n, v in names if n == kind] for kind in (_INPUT, _OUTPUT))
            yield reads, makes
