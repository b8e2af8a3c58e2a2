"""SHA-256 of what EdgeLadder computes: over values alone, so that names and layouts may change.

Arrays are hashed as (dtype, shape, bytes) and their hashes sorted: a tensor may be renamed or moved
to another place in its file, and the sum stays. One bit of one value changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ABSENT = "(absent)"  # in place of what one of two records does not have
_KEYS = "keys"  # of a cache's shard: which picture each row is of
_INDEX = "index"  # begins the name of the one file of a store that holds no activations


def digest_of(array: Array) -> bytes:
    """SHA-256 of one array's dtype, shape and values, (32,) bytes."""
    array = np.ascontiguousarray(array)
    made = hashlib.sha256(f"{array.dtype.str} {list(array.shape)} ".encode())
    made.update(array.tobytes())
    return made.digest()


def sum_of(digests: Iterable[bytes]) -> str:
    """One sum of many digests, in whatever order they come; in hexadecimal."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def sum_of_text(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sum_of_tensors(tensors: Mapping[str, Array]) -> str:
    """The sum of a file's tensors, their names aside."""
    return sum_of(digest_of(array) for array in tensors.values())


def sum_of_file(path: Path) -> str:
    """The sum of a safetensors file's tensors, their names aside."""
    from safetensors.numpy import load_file

    return sum_of_tensors(load_file(path))


def sums_of_cache(folder: Path) -> dict[str, str]:
    """Sums of a cache's activations, for every side (`image`, `text`) it holds.

    Returns:
        For each side `<side> values`, of the rows whatever their order and keys are, and
        `<side> keyed`, which also says under which key each of them lies.
    """
    sums: dict[str, str] = {}
    for store in sorted(path for path in folder.iterdir() if path.is_dir()):
        rows = [
            row
            for shard in sorted(store.glob("*.safetensors"))
            if not shard.name.startswith(_INDEX)
            for row in _rows(shard)
        ]
        if not rows:
            continue
        side = store.name.split("-")[0]
        if f"{side} values" in sums:
            raise SystemExit(
                f"{folder} holds two stores of side {side}: one cache a bundle, please"
            )
        sums[f"{side} values"] = sum_of(values for _, values in rows)
        sums[f"{side} keyed"] = sum_of(key + values for key, values in rows)
    return sums


def _rows(shard: Path) -> list[tuple[bytes, bytes]]:
    """Key and digest of every row of a shard; a row is one picture's or class's activations."""
    from safetensors.numpy import load_file

    tensors = load_file(shard)
    keys = tensors.pop(_KEYS)
    return [
        (keys[row].tobytes(), bytes.fromhex(sum_of(digest_of(t[row]) for t in tensors.values())))
        for row in range(len(keys))
    ]


def sums_of_deployed(path: Path, squares: Array) -> dict[str, str]:
    """Sums of an ONNX file: of its initialisers, and of what it answers to pictures.

    Args:
        squares: (N, S, S, 3) uint8, the file's one input.

    Returns:
        `initializers`, names aside, and `probabilities`, rounded to 1e-6.
    """
    import onnx
    import onnxruntime

    initializers = onnx.load(path).graph.initializer
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: squares})
    return {
        "initializers": sum_of(digest_of(onnx.numpy_helper.to_array(t)) for t in initializers),
        "probabilities": sum_of_text(rounded(probabilities)),
    }


def rounded(numbers: Array) -> str:
    """Numbers to six places, in one line."""
    return " ".join(
        f"{round(number, 6) + 0.0:.6f}" for number in np.asarray(numbers, float).ravel()
    )


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Every place at which two nested records differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after})
            for line in differences(
                before.get(key, ABSENT), after.get(key, ABSENT), f"{place}/{key}"
            )
        ]
    return [] if before == after else [f"{place}: {before} -> {after}"]
