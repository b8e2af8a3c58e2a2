"""One ONNX file of a run: picture in, probabilities out, made on the device without onnx.

Whoever runs the file needs onnxruntime and the square of pixels its metadata describes: no
bundle, no EdgeLadder, no text tower.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgeladder import __version__
from edgeladder.core import disk
from edgeladder.core.errors import ConfigError, EdgeLadderError
from edgeladder.core.inference import Compared, Deployment, Port
from edgeladder.core.ownership import require_ours
from edgeladder.core.records import compact_json
from edgeladder.core.spelling import nearest
from edgeladder.runtime.classifier import Classifier, InferenceSizes
from edgeladder.runtime.compress_weights import Dtype, compress
from edgeladder.runtime.deploy_check import Differences, difference, probe
from edgeladder.runtime.deploy_graph import KNOWN, PICTURE, PROBABILITIES, assemble
from edgeladder.runtime.portable_graph import make_portable
from edgeladder.runtime.session import IN_FLOAT, WIDENED

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

TOLERANCE = 1e-4  # between the file's logits and predict's, fp32: a share of the largest of them


def deploy(
    run: Path,
    out: Path = Path("model.onnx"),
    *,
    bundle: Bundle | Path | None = None,
    dtype: str = "fp32",
    threads: int | None = None,
    sizes: InferenceSizes | None = None,
    classes: str | None = None,
    portable: bool = False,
) -> Deployment:
    """Write a run's classifier as one ONNX file and compare it with `predict`, in this process.

    Args:
        run: run directory, or a folder with an adapter.
        out: the file; complete or as before.
        bundle: None: the one the run remembers.
        dtype: of the weights in the file: fp32, fp16 or int8 (arithmetic is fp32 in each).
        threads: of onnxruntime; None: all cores.
        sizes: None: the image tower whole.
        classes: that the file chooses among (`vocabulary.asked_classes`); None: those it was
            trained on.
        portable: in operators of the ONNX standard alone, for runtimes other than onnxruntime.

    Raises:
        ConfigError: no run, no bundle, unknown dtype, more than one file can hold, or `out` is a
            file of another make.
        EdgeLadderError: the fp32 file and predict disagree by more than `TOLERANCE`
            allows.
        StorageError: no space left.
    """
    narrow = checked_dtype(out, dtype)
    with Classifier.open(run, bundle, threads=threads, sizes=sizes, classes=classes) as classifier:
        return write_model(classifier, Path(out), narrow, portable=portable)


def checked_dtype(out: str | Path, dtype: str) -> Dtype:
    """The dtype asked for; what cannot be written is refused before anything is opened.

    Raises:
        ConfigError: unknown dtype, or `out` is a file of another make.
    """
    known = _known_dtype(dtype)
    require_ours(out, "model")
    return known


def write_model(
    classifier: Classifier, out: Path, dtype: Dtype, *, portable: bool = False
) -> Deployment:
    """`deploy` with a classifier that is open."""
    graph = assemble(
        classifier.bundle,
        classifier.encoder.values,
        classifier.class_embeddings,
        classifier.formula,
        classifier.known,
    )
    if portable:
        make_portable(graph)
    small = compress(graph, dtype)
    pictures = probe(classifier)
    expected = classifier.answers(pictures.squares)
    classifier.rest()  # its tower and the file's are never in memory together
    with _candidate(out) as candidate:
        size = graph.write(candidate, _metadata(classifier), f"edgeladder {__version__}")
        found = difference(candidate, graph, pictures.squares, expected, classifier.threads)
        if dtype == "fp32":
            _require_same(found, float(np.abs(expected[0]).max()), out)
    known = classifier.known
    side, labels = classifier.bundle.manifest.preprocess.size, classifier.classes
    return Deployment(
        path=str(out),
        bytes=size,
        dtype=dtype,
        classes=labels,
        input=Port(name=PICTURE, shape=["N", side, side, 3], dtype="uint8"),
        output=Port(name=PROBABILITIES, shape=["N", len(labels)], dtype="float32"),
        weights=small,
        difference=found.logits,
        compared=Compared(pictures=len(pictures.squares), origin=pictures.origin),
        known=None if known is None else Port(name=KNOWN, shape=["N"], dtype="float32"),
        known_threshold=None if known is None else known.record.threshold,
        known_difference=found.known,
        asked=classifier.run.asked(),
    )


def _require_same(found: Differences, largest: float, out: Path) -> None:
    """Raise EdgeLadderError where a file and predict disagree by more than `TOLERANCE`."""
    what, apart = "logits", found.logits
    if apart <= TOLERANCE * max(1.0, largest):
        what, apart = "scores of known pictures", found.known or 0.0
        if apart <= TOLERANCE:
            return
    raise EdgeLadderError(
        f"the file's {what} differ from predict's by {apart:.2g}",
        where=str(out),
        remedy="report this with the bundle's manifest.json; nothing was written",
    )


def _known_dtype(name: str) -> Dtype:
    for known in get_args(Dtype):
        if name == known:
            found: Dtype = known
            return found
    guess = nearest(name, get_args(Dtype))
    raise ConfigError(
        f"unknown dtype {name!r}",
        where="--dtype",
        remedy=(f"did you mean {guess!r}? " if guess else "") + "use fp32, fp16 or int8",
    )


@contextlib.contextmanager
def _candidate(out: Path) -> Iterator[Path]:
    """A file beside `out`, renamed to it where nothing fails: a wrong file never appears."""
    candidate = out.with_name(f".{out.name}.candidate")
    try:
        yield candidate
        disk.replace(candidate, out)
    finally:
        disk.unlink(candidate)


def _metadata(classifier: Classifier) -> dict[str, str]:
    """What a user of the file must know, as the file's own metadata."""
    manifest = classifier.bundle.manifest
    names = [item.name for item in classifier.run.vocabulary.names]
    known = classifier.known
    told = {} if known is None else {"known_threshold": repr(known.record.threshold)}
    convolves = any(segment.convolves for segment in manifest.image.segments)
    session = {**IN_FLOAT, **(WIDENED if convolves else {})}
    return {
        **told,  # a picture whose output `known` is below it is of none of the classes
        "edgeladder": __version__,
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "class_names": json.dumps(names, ensure_ascii=False),
        "model": f"{manifest.model.name} {manifest.model.pretrained}",
        "licence": manifest.model.licence,
        "bundle_digest": classifier.bundle.digest,
        "preprocess": compact_json(manifest.preprocess),
        "session_config": json.dumps(session),  # for the same numbers with int8 weights
        "input": "RGB, resized and cropped as preprocess says; mean and std are in the graph",
    }
