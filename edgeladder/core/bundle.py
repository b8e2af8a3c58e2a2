"""The bundle: the only thing that crosses from the host to a device (contract 1).

A directory, or one .tar file of it, with `manifest.json` and the files it lists by size and
SHA-256. Opening a bundle checks the version, that every file is there and, with `verify`, every
byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgeladder.core.archive import is_archive, unpack
from edgeladder.core.config import Profile, nearest, validate
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import read_json, sha256_file, write_json
from edgeladder.core.old_words import modern_manifest
from edgeladder.core.ownership import MANIFEST

SCHEMA_VERSION = 1


class Record(BaseModel):
    """Part of a manifest: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorRecord(Record):
    """A named tensor at a segment's edge; the first dimension, the batch, is left out."""

    name: str
    shape: list[int]
    dtype: str = "float32"


class SegmentRecord(Record):
    """One ONNX piece of a frozen tower. Segments run in order and pass tensors on by name."""

    file: str
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]  # hidden states for later segments, taps and embeddings
    weight_bytes: int
    activation_bytes: int  # measured at export: peak of intermediate tensors for one sample


class TapRecord(Record):
    """One tap: per-token standardised activations (mean 0, variance 1 over the channels)."""

    name: str  # the segment output that carries it: (N, tokens, width)
    block: int
    tokens: int
    width: int


class PreprocessRecord(Record):
    """Picture -> pixels, as open_clip does it."""

    size: int  # of the square the tower sees, px
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    mean: list[float]
    std: list[float]
    fill: int = 0


class TokenizerRecord(Record):
    """What a device needs to tokenise class names."""

    kind: Literal["clip-bpe", "huggingface", "nano"]
    files: list[str]
    context_length: int
    options: dict[str, Any] = {}


class TowerRecord(Record):
    """A frozen tower: its segments, taps and outputs."""

    segments: list[SegmentRecord]
    taps: list[TapRecord]
    embedding: str  # output (N, D): after CLIP's projection, not normalised
    embedding_pre: str | None = None  # output (N, W): before the projection, where there is one
    digest: str  # SHA-256 over weights, cut and preprocessing or tokenizer: the cache's key


class ModelRecord(Record):
    """The frozen model and where it comes from."""

    name: str
    pretrained: str
    origin: str
    licence: str
    embedding_dim: int
    logit_scale: float  # already exponentiated
    logit_bias: float = 0.0  # SigLIP


class ParameterRecord(Record):
    """A trained tensor of the ladder, in the order of the flat parameter vector."""

    name: str
    shape: list[int]
    decay: bool  # weight decay applies (no biases, norms or gates)


class TapGroup(Record):
    """Taps of equal shape travel as one graph input (L, T, N, W), tokens first."""

    input: str  # e.g. image_taps_0
    side: Literal["image", "text"]
    taps: list[int]  # indices into the tower's taps
    tokens: int
    width: int


class GraphRecord(Record):
    """One ONNX graph of the ladder: names of what goes in and comes out."""

    file: str
    inputs: list[str]
    outputs: list[str]
    nodes: int
    activation_bytes: dict[str, float] = {}  # at 32 x 100: fixed, per_image, per_class
    # peak of intermediates: the largest of fixed + pictures * per_image + classes * per_class
    peaks: list[tuple[float, float, float]] = []
    residual_bytes: float = 0.0  # keep graphs: what one picture or class hands to the backward pass


class LadderRecord(Record):
    """The trained part: parameters, and the graphs derived from `ladder/forward.onnx`."""

    parameters: list[ParameterRecord]
    buffers: list[TensorRecord] = []  # state that is not trained (codebooks, masks); full shapes
    groups: list[TapGroup]
    image_inputs: list[str] = []  # further per-picture inputs, e.g. image_embedding_pre
    forward: str
    initial: str  # parameters and buffers by name; parameters that are all zero are left out
    golden: str
    graphs: dict[str, GraphRecord]
    ort_training: dict[str, str] = {}  # role -> file; empty where it was not exported


class FileRecord(Record):
    """Size and hash of one file."""

    size: int
    sha256: str


class Manifest(Record):
    """`manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    model: ModelRecord
    preprocess: PreprocessRecord
    tokenizer: TokenizerRecord
    image: TowerRecord
    text: TowerRecord
    ladder: LadderRecord
    profile: Profile
    classes: list[str] = []  # given at export; the device may bring its own
    files: dict[str, FileRecord] = {}
    versions: dict[str, str] = {}


class Bundle:
    """An opened bundle: its folder and manifest."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open a bundle directory, or unpack a .tar of one beside itself and open that.

        Args:
            path: folder with `manifest.json`, or a .tar file.
            verify: hash every file; without it only presence and size are checked.

        Raises:
            ConfigError: there is no bundle at `path`.
            IntegrityError: another schema version, a missing or changed file.
        """
        folder = Path(path)
        if is_archive(folder):
            folder = unpack(folder)
        if not (folder / MANIFEST).is_file():
            raise ConfigError(
                "no bundle here",
                where=str(folder),
                remedy="make one on a host with `edgeladder export --model ViT-B/16 --out bundle`, "
                "or name one with --bundle",
            )
        bundle = cls(folder, _read_manifest(folder))
        bundle.check(verify=verify)
        return bundle

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds every file's hash: the bundle's identity."""
        return sha256_file(self.folder / MANIFEST)

    def path(self, name: str) -> Path:
        """The file of a manifest-relative name."""
        return self.folder / name

    def check(self, *, verify: bool = True) -> None:
        """Compare the files with the manifest.

        Raises:
            IntegrityError: naming the first file that is missing or differs.
        """
        for name, record in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                raise IntegrityError(
                    f"the bundle lacks {name}", where=str(self.folder), remedy=_AGAIN
                )
            if path.stat().st_size != record.size or (
                verify and sha256_file(path) != record.sha256
            ):
                raise IntegrityError(
                    f"{name} is not what the manifest says", where=str(path), remedy=_AGAIN
                )


_AGAIN = "copy or export the bundle again"


def _read_manifest(folder: Path) -> Manifest:
    where = str(folder / MANIFEST)
    try:
        values = read_json(folder / MANIFEST)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"unreadable manifest: {error}", where=where, remedy=_AGAIN) from error
    if version != SCHEMA_VERSION:
        raise IntegrityError(
            f"bundle version {version}, this edgeladder reads version {SCHEMA_VERSION}",
            where=where,
            remedy="export the bundle with the same edgeladder version as the device's",
        )
    try:
        return validate(Manifest, modern_manifest(values), where=where)
    except ConfigError as error:
        raise IntegrityError(error.message, where=where, remedy=_AGAIN) from error


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file under `folder` but the manifest."""
    return {
        name: FileRecord(size=path.stat().st_size, sha256=sha256_file(path))
        for name, path in _walk(folder)
    }


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            yield name, path


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the hashes of all files beside it: the last act of an export."""
    complete = manifest.model_copy(update={"files": record_files(folder)})
    write_json(folder / MANIFEST, complete.model_dump(mode="json"))


def class_indices(names: list[str], known: list[str], *, where: str) -> list[int]:
    """Indices of `names` in `known`.

    Raises:
        ConfigError: a name is unknown; the nearest is suggested.
    """
    position = {name: index for index, name in enumerate(known)}
    for name in names:
        if name not in position:
            guess = nearest(name, known)
            raise ConfigError(
                f"label {name!r} is not among the classes",
                where=where,
                remedy=(f"did you mean {guess!r}? " if guess else "") + "correct the label",
            )
    return [position[name] for name in names]
