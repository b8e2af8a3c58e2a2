"""One ONNX file of a run, made without onnx: picture in, probabilities or an embedding out.

Whoever runs the file needs onnxruntime and the square of pixels its metadata describes (or any
picture, where it resizes itself): no bundle, no EdgeLadder, no text tower.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from edgeladder import __version__
from edgeladder.core import disk
from edgeladder.core.errors import ConfigError, EdgeLadderError
from edgeladder.core.files import storage_errors
from edgeladder.core.inference import OUTPUTS, Compared, Deployment, Form, Port
from edgeladder.core.ownership import require_ours
from edgeladder.core.records import compact_json
from edgeladder.core.spelling import nearest
from edgeladder.runtime.classifier import Classifier, InferenceSizes
from edgeladder.runtime.compress_weights import Dtype, compress
from edgeladder.runtime.deploy_check import differences, probe, resize_difference
from edgeladder.runtime.deploy_graph import (
    CLASS_EMBEDDINGS,
    EMBEDDING,
    KNOWN,
    PICTURE,
    PROBABILITIES,
    assemble,
    logits_of,
)
from edgeladder.runtime.portable_graph import make_portable
from edgeladder.runtime.session import IN_FLOAT, WIDENED

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.onnx_graph import Graph

TOLERANCE = 1e-4  # between the file's logits and predict's, fp32: a share of the largest of them
# the same of an int8 tower: where float32's last bit differs, what is rounded may go the other way
INT8_TOLERANCE = 2e-2
# grey levels between squares, by how they are made: half a level of each rounding, the first
# weighted by a kernel; Pillow may squash in the other order (`resize_graph`)
RESIZE_TOLERANCE = {"shortest": 2.0, "longest": 2.0, "squash": 8.0}


def deploy(
    run: Path,
    out: Path = Path("model.onnx"),
    form: Form = Form(),
    *,
    bundle: Bundle | Path | None = None,
    threads: int | None = None,
    sizes: InferenceSizes | None = None,
    classes: str | None = None,
) -> Deployment:
    """Write a run's classifier as one ONNX file and compare it with `predict`, in this process.

    Args:
        run: run directory, or a folder with an adapter.
        out: the file; complete or as before.
        form: what it is to be.
        bundle: None: the one the run remembers.
        threads: of onnxruntime; None: all cores.
        sizes: None: the image tower whole.
        classes: that the file chooses among (`vocabulary.asked_classes`); None: those it was
            trained on.

    Raises:
        ConfigError: no run, no bundle, unknown dtype or output, more than one file can hold, a
            model whose resizing ONNX has not, or `out` is a file of another make.
        EdgeLadderError: the fp32 file and predict disagree by more than `TOLERANCE` allows
            (`INT8_TOLERANCE` where the tower is int8), or squares by more than
            `RESIZE_TOLERANCE`.
        StorageError: no space left.
    """
    check_form(out, form)
    with Classifier.open(run, bundle, threads=threads, sizes=sizes, classes=classes) as classifier:
        return write_model(classifier, Path(out), form)


def check_form(out: str | Path, form: Form) -> None:
    """Refuse what cannot be written, before anything is opened.

    Raises:
        ConfigError: unknown dtype or output, or `out` is a file of another make.
    """
    if form.dtype == "int8":  # what weights stored small were called before there was arithmetic
        raise ConfigError(
            "int8 arithmetic is decided when a bundle is exported",
            where="--dtype",
            remedy="use --dtype int8-weights for a small file that computes in float32, "
            "or export the bundle with --dtype int8",
        )
    _require_one_of("dtype", form.dtype, get_args(Dtype))
    _require_one_of("output", form.output, OUTPUTS)
    with storage_errors(Path(out)):
        str(out).encode()  # onnxruntime, which checks the file, takes no other path
    require_ours(out, "model")


def write_model(classifier: Classifier, out: Path, form: Form) -> Deployment:
    """`deploy` with a classifier that is open."""
    graph = assemble(
        classifier.bundle,
        classifier.encoder.values,
        classifier.class_embeddings,
        classifier.formula,
        classifier.known,
        form,
    )
    if form.portable:
        make_portable(graph)
    small = compress(graph, form.dtype)
    pictures = probe(classifier)
    expected, hidden = _expected(classifier, graph, pictures.squares, form)
    classifier.rest()  # its tower and the file's are never in memory together
    with _candidate(out) as candidate:
        size = graph.write(candidate, _metadata(classifier, form), f"edgeladder {__version__}")
        found = differences(candidate, pictures.squares, expected, hidden, classifier.threads)
        if form.dtype == "fp32":
            int8 = classifier.bundle.manifest.image.int8 is not None
            _require_same(found, expected, out, INT8_TOLERANCE if int8 else TOLERANCE)
        resized = None
        if form.include_resize:
            resized = resize_difference(candidate, classifier, classifier.threads)
            _require_square(resized, classifier, out)
    main = next(iter(expected))
    return Deployment(
        path=str(out),
        bytes=size,
        dtype=form.dtype,
        classes=classifier.classes,
        weights=small,
        difference=found[main],
        compared=Compared(pictures=len(pictures.squares), origin=pictures.origin),
        known_difference=found.get(KNOWN),
        resize_difference=resized,
        asked=classifier.run.asked(),
        **_ports(classifier, form),
    )


def _expected(
    classifier: Classifier, graph: Graph, squares: np.ndarray, form: Form
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What the file must say of these squares, the main thing first; and what of it is hidden."""
    if form.embeds:
        return {EMBEDDING: classifier.embeddings(squares)}, []
    logits, known = classifier.answers(squares)
    name = logits_of(graph)
    return {name: logits, **({} if known is None else {KNOWN: known})}, [name]


def _ports(classifier: Classifier, form: Form) -> dict[str, Any]:
    """Inputs and outputs of the file, and the threshold of one, as `Deployment` has them."""
    side, count = classifier.bundle.manifest.preprocess.size, len(classifier.classes)
    sides: list[int | str] = ["height", "width"] if form.include_resize else [side, side]
    ports: dict[str, Any] = {"input": Port(name=PICTURE, shape=["N", *sides, 3], dtype="uint8")}
    if form.embeds:
        width = classifier.class_embeddings.tuned.shape[1]
        vectors = Port(name=CLASS_EMBEDDINGS, shape=[count, width], dtype="float32")
        ports["output"] = Port(name=EMBEDDING, shape=["N", width], dtype="float32")
        return {**ports, "class_embeddings": vectors}
    ports["output"] = Port(name=PROBABILITIES, shape=["N", count], dtype="float32")
    if classifier.known is not None:
        ports["known"] = Port(name=KNOWN, shape=["N"], dtype="float32")
        ports["known_threshold"] = classifier.known.record.threshold
    return ports


def _require_same(
    found: Mapping[str, float], expected: Mapping[str, np.ndarray], out: Path, tolerance: float
) -> None:
    """Raise EdgeLadderError where a file and predict disagree by more than `tolerance`."""
    for name, apart in found.items():
        what = {KNOWN: "scores of known pictures", EMBEDDING: "embeddings"}.get(name, "logits")
        largest = float(np.abs(expected[name]).max()) if what == "logits" else 1.0
        if apart > tolerance * max(1.0, largest):
            raise EdgeLadderError(
                f"the file's {what} differ from predict's by {apart:.2g}",
                where=str(out),
                remedy="report this with the bundle's manifest.json; nothing was written",
            )


def _require_square(apart: float, classifier: Classifier, out: Path) -> None:
    """Raise EdgeLadderError where a file resizes otherwise than predict."""
    if apart > RESIZE_TOLERANCE[classifier.bundle.manifest.preprocess.resize_mode]:
        raise EdgeLadderError(
            f"the file's resized pictures differ from predict's by {apart:.0f} grey levels",
            where=str(out),
            remedy="deploy without --include-resize, and report this with onnxruntime's version; "
            "nothing was written",
        )


def _require_one_of(option: str, given: str, choices: Sequence[str]) -> None:
    if given in choices:
        return
    guess = nearest(given, choices)
    raise ConfigError(
        f"unknown {option} {given!r}",
        where=f"--{option}",
        remedy=(f"did you mean {guess!r}? " if guess else "")
        + f"use {', '.join(choices[:-1])} or {choices[-1]}",
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


def _metadata(classifier: Classifier, form: Form) -> dict[str, str]:
    """What a user of the file must know, as the file's own metadata."""
    manifest = classifier.bundle.manifest
    names = [item.name for item in classifier.run.vocabulary.names]
    told: dict[str, str] = {}
    if form.embeds:  # softmax(scale * cosine + bias) are probabilities of the ladder
        calibration = classifier.run.adapter.record.calibration
        temperature = calibration.ladder_temperature if calibration else 1.0
        told["logit_scale"] = repr(float(manifest.model.logit_scale) / temperature)
        told["logit_bias"] = repr(float(manifest.model.logit_bias) / temperature)
    elif classifier.known is not None:
        # a picture whose output `known` is below it is of none of the classes
        told["known_threshold"] = repr(classifier.known.record.threshold)
    sides = "of any height and width" if form.include_resize else "resized as preprocess says"
    convolves = any(segment.convolves for segment in manifest.image.segments)
    session = {**IN_FLOAT, **(WIDENED if convolves else {})}
    return {
        **told,
        "edgeladder": __version__,
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "class_names": json.dumps(names, ensure_ascii=False),
        "model": f"{manifest.model.name} {manifest.model.pretrained}",
        "licence": manifest.model.licence,
        "bundle_digest": classifier.bundle.digest,
        "preprocess": compact_json(manifest.preprocess),
        "session_config": json.dumps(session),  # for the same numbers with int8 weights
        "include_resize": str(form.include_resize).lower(),
        "input": f"upright RGB, {sides}; mean and std are in the graph",
    }
