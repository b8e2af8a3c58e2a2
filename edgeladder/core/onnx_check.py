"""What an ONNX file may hold before onnxruntime sees it: plain operators, data inside the bundle.

onnxruntime maps whatever file a tensor's `external_data` names, takes one special location for an
address in memory, and has operators that load libraries, call back into Python or open files of
their own. A bundle comes from elsewhere, so each file is read here first, field by field
(onnx.proto3), without copying its constants.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgeladder.core.confinement import AGAIN
from edgeladder.core.errors import IntegrityError
from edgeladder.core.operators import DEFAULT_DOMAINS, is_allowed
from edgeladder.core.protobuf import external_data, fields_of

_DEEPEST_GRAPH = 16
# field numbers of onnx.proto3
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION, _EXTERNAL = 13, 14, 1
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10


@dataclass
class _Found:
    """What a file's graphs hold."""

    operators: set[tuple[str, str]] = field(default_factory=set)  # (domain, name)
    functions: set[tuple[str, str]] = field(default_factory=set)  # of its own
    locations: set[str] = field(default_factory=set)  # external data, checked against the disk


def check_model(folder: Path, name: str) -> set[str]:
    """Check one ONNX file of a bundle.

    Args:
        folder: the bundle.
        name: the file, relative to it; known to be a plain file there.

    Returns:
        Names of the files with its external data, relative to the bundle; each is a plain file
        beside or below the model's, and long enough for what is read of it.

    Raises:
        IntegrityError: not an ONNX file, an operator that is not allowed, or external data that
            lead elsewhere.
    """
    path = folder / name
    found = _Found()
    try:
        with open(path, "rb") as stream:  # the map goes when its last view goes
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        _model(memoryview(content), path, found)
    except (ValueError, OSError) as error:  # empty, or not UTF-8 where there should be names
        raise IntegrityError(f"not an ONNX file: {error}", where=str(path), remedy=AGAIN) from error
    except IntegrityError as error:
        error.where = error.where or str(path)
        error.remedy = error.remedy or AGAIN
        raise
    for domain, operator in sorted(found.operators - found.functions):
        if not is_allowed(domain, operator):
            raise IntegrityError(
                f"operator {domain or 'ai.onnx'}::{operator} is not allowed in a bundle",
                where=str(path),
                remedy="use bundles that `edgeladder export` made; `docs/bundle.md` has the list",
            )
    parent = PurePosixPath(name).parent
    return {(parent / location).as_posix() for location in found.locations}


def _model(view: memoryview, path: Path, found: _Found) -> None:
    graphs = 0
    for number, value in fields_of(view):
        if not isinstance(value, memoryview):
            continue
        if number == _MODEL_GRAPH:
            graphs += 1
            _graph(value, path, found, 0)
        elif number == _MODEL_TRAINING:
            raise IntegrityError("an ONNX file with training_info of its own")
        elif number == _MODEL_FUNCTION:
            _function(value, path, found)
    if not graphs:
        raise IntegrityError("not an ONNX file: no graph")


def _function(view: memoryview, path: Path, found: _Found) -> None:
    name = domain = ""
    for number, value in fields_of(view):
        if number == _FUNCTION_NAME:
            name = _text(value)
        elif number == _FUNCTION_DOMAIN:
            domain = _text(value)
        elif number == _FUNCTION_NODE and isinstance(value, memoryview):
            _node(value, path, found, 0)
    if domain in DEFAULT_DOMAINS or is_allowed(domain, name):
        raise IntegrityError(f"a function that takes the place of operator {name!r}")
    found.functions.add((domain, name))


def _graph(view: memoryview, path: Path, found: _Found, depth: int) -> None:
    if depth > _DEEPEST_GRAPH:
        raise IntegrityError("graphs within graphs, nested too deeply")
    for number, value in fields_of(view):
        if not isinstance(value, memoryview):
            continue
        if number == _GRAPH_NODE:
            _node(value, path, found, depth)
        elif number == _GRAPH_INITIALIZER:
            _tensor(value, path, found)
        elif number == _GRAPH_SPARSE:
            _sparse(value, path, found)


def _node(view: memoryview, path: Path, found: _Found, depth: int) -> None:
    operators, domains = [""], [""]
    for number, value in fields_of(view):
        if number == _NODE_OPERATOR:
            operators.append(_text(value))
        elif number == _NODE_DOMAIN:
            domains.append(_text(value))
        elif number == _NODE_ATTRIBUTE and isinstance(value, memoryview):
            _attribute(value, path, found, depth)
    if len(operators) > 2 or len(domains) > 2:  # readers differ in which one they take
        raise IntegrityError("a node with two operators")
    found.operators.add((domains[-1], operators[-1]))


def _attribute(view: memoryview, path: Path, found: _Found, depth: int) -> None:
    for number, value in fields_of(view):
        if not isinstance(value, memoryview):
            continue
        if number in _ATTRIBUTE_TENSORS:
            _tensor(value, path, found)
        elif number in _ATTRIBUTE_GRAPHS:
            _graph(value, path, found, depth + 1)
        elif number in _ATTRIBUTE_SPARSE:
            _sparse(value, path, found)


def _sparse(view: memoryview, path: Path, found: _Found) -> None:
    for number, value in fields_of(view):
        if number in (1, 2) and isinstance(value, memoryview):  # values, indices
            _tensor(value, path, found)


def _tensor(view: memoryview, path: Path, found: _Found) -> None:
    entries: list[bytes] = []
    outside = False
    for number, value in fields_of(view):
        if number == _TENSOR_EXTERNAL and isinstance(value, memoryview):
            entries.append(bytes(value))
        elif number == _TENSOR_LOCATION:
            outside = outside or value == _EXTERNAL
    if entries or outside:
        found.locations.add(external_data(entries, path.parent).name)


def _text(value: int | memoryview) -> str:
    return bytes(value).decode("utf-8") if isinstance(value, memoryview) else str(value)
