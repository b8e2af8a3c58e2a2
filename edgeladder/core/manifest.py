"""The manifest: what a bundle says of itself (contract 1), as frozen records.

What it says decides how pictures are prepared, how much memory is planned for and which numbers are
divided by, so every number has bounds: wide enough for any model, and shut to what is none, to
negative sizes and to infinities. No comparison holds for NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from edgeladder.core.bounds import Ge, Gt, Le
from edgeladder.core.config import Profile
from edgeladder.core.prompt_tensors import PromptTensors

SCHEMA_VERSION = 1
# graphs that every export writes: a plan compares ways to train by all of them
GRAPHS = frozenset({"fused", "recompute", "loss", "norm"}) | {
    f"{name}_{side}"
    for name in ("encode", "backward", "forward_saved", "backward_saved")
    for side in ("image", "text")
}

Size = Annotated[int, Ge(1), Le(2**31 - 1)]  # of a dimension
Count = Annotated[int, Ge(0), Le(2**31 - 1)]
Bytes = Annotated[int, Ge(0), Le(2**42)]
Amount = Annotated[float, Ge(0.0), Le(2.0**42)]  # bytes, or bytes of one sample, as measured
Colour = Annotated[float, Ge(-10.0), Le(10.0)]  # of pixels that are 0 to 1
_CHANNELS = 3
_MAP_AXES = 3  # beside the batch
_MOST_ELEMENTS = 2**42  # of a tensor: plans multiply them as floats


def _check_elements(name: str, shape: list[int]) -> None:
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ValueError(f"{name} has more than {_MOST_ELEMENTS} elements")


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A named tensor at a segment's edge; the first dimension, the batch, is left out."""

    name: str
    shape: list[Size]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_elements(self.name, self.shape)


@dataclass(frozen=True, kw_only=True)
class ProductRecord:
    """A matrix product of an int8 tower, and what the export's calibration batch said of it."""

    name: str  # of its weight in the segment's file
    arithmetic: Literal["int8", "float32"]
    error: Annotated[float, Ge(0.0), Le(1e6)]  # that int8 makes, a share of the output's length
    smoothed: bool  # its layer norm carries SmoothQuant's scales


@dataclass(frozen=True, kw_only=True)
class Int8Record:
    """How an int8 tower was calibrated, and how near its float32 self it is."""

    calibration: Literal["pictures", "drawn", "sentences"]
    samples: Size
    bound: Annotated[float, Ge(0.0), Le(1.0)]  # of a product's error; above it: float32
    cosines: dict[str, Annotated[float, Ge(-1.01), Le(1.01)]]  # each output's least, by name


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """One ONNX piece of a frozen tower. Segments run in order and pass tensors on by name."""

    file: str
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]  # hidden states for later segments, taps and embeddings
    weight_bytes: Bytes  # as stored
    activation_bytes: Bytes  # measured at export: peak of intermediate tensors for one sample
    # of its weights as float32; None: written before that was recorded, when convolutions were
    # stored as int8 only
    float_bytes: Bytes | None = None
    products: list[ProductRecord] = field(default_factory=list)  # of an int8 tower

    @property
    def convolves(self) -> bool:
        """Whether what it passes on are maps (channels, height, width): a convolution's.

        Its weights are made float32 once, as the segment is opened. onnxruntime fuses int8 weights
        into matrix products, not into convolutions: those were made wide again in every run, for
        three quarters of nano's time, and could not be laid out for the processor.
        """
        passed = [*self.inputs, *self.outputs]
        maps = [item for item in passed if len(item.shape) == _MAP_AXES]
        return any(item.shape[0] != _CHANNELS for item in maps)  # a picture is none

    @property
    def gives_maps(self) -> bool:
        """Whether maps leave it: its weights are convolutions', not those of what pools them."""
        return any(len(item.shape) == _MAP_AXES for item in self.outputs)

    @property
    def computes_int8(self) -> bool:
        """Whether all its products with weights are int8, which makes its activations smaller."""
        return bool(self.products) and all(p.arithmetic == "int8" for p in self.products)

    @property
    def opened_bytes(self) -> int:
        """Its weights once it is open."""
        if not self.convolves:
            return self.weight_bytes
        return 4 * self.weight_bytes if self.float_bytes is None else self.float_bytes


@dataclass(frozen=True, kw_only=True)
class TapRecord:
    """One tap: per-token standardised activations (mean 0, variance 1 over the channels)."""

    name: str  # the segment output that carries it: (N, tokens, width)
    block: Count
    tokens: Size
    width: Size


@dataclass(frozen=True, kw_only=True)
class PreprocessRecord:
    """Picture -> pixels, as open_clip does it."""

    size: Annotated[int, Ge(1), Le(4096)]  # of the square the tower sees, px
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    mean: list[Colour]
    std: list[Annotated[float, Gt(0.0), Le(10.0)]]
    fill: Annotated[int, Ge(0), Le(255)] = 0

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == _CHANNELS:
            raise ValueError(f"mean and std have {_CHANNELS} values each")


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """What a device needs to tokenise class names."""

    kind: Literal["clip-bpe", "huggingface", "nano"]
    files: list[str]
    context_length: Annotated[int, Ge(1), Le(1 << 20)]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TowerRecord:
    """A frozen tower: its segments, taps and outputs."""

    segments: list[SegmentRecord]
    taps: list[TapRecord]
    embedding: str  # output (N, D): after CLIP's projection, not normalised
    embedding_pre: str | None = None  # output (N, W): before the projection, where there is one
    digest: str  # SHA-256 over weights, cut and preprocessing or tokenizer, as exported; the
    # activation cache goes by the files instead (`Bundle.tower_key`)
    int8: Int8Record | None = None  # of a tower that was exported for int8 arithmetic


def rows_at_once(tower: TowerRecord, segment: SegmentRecord, samples: int) -> int:
    """Rows that a segment is run on for so many samples: two at least where it gives embeddings.

    There one sample is one row of a matrix product, and a single row is multiplied by a routine of
    its own, whose sums may differ in the last bit. What a picture gives must depend neither on the
    batch that a budget allows nor on how many pictures came before it.
    """
    embeddings = (tower.embedding, tower.embedding_pre)
    gives = any(item.name in embeddings for item in segment.outputs)
    return max(samples, 2) if gives else samples


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The frozen model and where it comes from."""

    name: str
    pretrained: str
    origin: str
    licence: str
    embedding_dim: Size
    # already exponentiated; CLIP's training clips it at 100
    logit_scale: Annotated[float, Gt(0.0), Le(1e4)]
    logit_bias: Annotated[float, Ge(-1e4), Le(1e4)] = 0.0  # SigLIP


@dataclass(frozen=True, kw_only=True)
class ParameterRecord:
    """A trained tensor of the ladder, in the order of the flat parameter vector."""

    name: str
    shape: list[Size]
    decay: bool  # weight decay applies (no biases, norms or gates)

    def __post_init__(self) -> None:
        _check_elements(self.name, self.shape)


@dataclass(frozen=True, kw_only=True)
class TapGroup:
    """Taps of equal shape travel as one graph input (L, T, N, W), tokens first."""

    input: str  # e.g. image_taps_0
    side: Literal["image", "text"]
    taps: list[Count]  # indices into the tower's taps
    tokens: Size
    width: Size


@dataclass(frozen=True, kw_only=True)
class GraphRecord:
    """One ONNX graph of the ladder: names of what goes in and comes out."""

    file: str
    inputs: list[str]
    outputs: list[str]
    nodes: Count
    activation_bytes: dict[str, Amount] = field(
        default_factory=dict
    )  # at 32 x 100: fixed, per_image, per_class
    # peak of intermediates: the largest of fixed + pictures * per_image + classes * per_class
    peaks: list[tuple[Amount, Amount, Amount]] = field(default_factory=list)
    # forward_saved graphs: what one picture or class hands to the backward pass
    residual_bytes: Amount = 0.0


@dataclass(frozen=True, kw_only=True)
class LadderRecord:
    """The trained part: parameters, and the graphs derived from `ladder/forward.onnx`."""

    parameters: list[ParameterRecord]
    buffers: list[TensorRecord] = field(
        default_factory=list
    )  # state that is not trained (codebooks, masks); full shapes
    prompts: PromptTensors = PromptTensors()  # which of both are prompts
    groups: list[TapGroup]
    image_inputs: list[str] = field(
        default_factory=list
    )  # further per-picture inputs, e.g. image_embedding_pre
    forward: str
    initial: str  # parameters and buffers by name; parameters that are all zero are left out
    golden: str
    graphs: dict[str, GraphRecord]
    ort_training: dict[str, str] = field(
        default_factory=dict
    )  # role -> file; empty where it was not exported


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and hash of one file."""

    size: Bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    model: ModelRecord
    preprocess: PreprocessRecord
    tokenizer: TokenizerRecord
    image: TowerRecord
    text: TowerRecord
    ladder: LadderRecord
    profile: Profile
    classes: list[str] = field(
        default_factory=list
    )  # given at export; the device may bring its own
    files: dict[str, FileRecord] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lacking = sorted(GRAPHS - self.ladder.graphs.keys())
        if lacking:
            raise ValueError(f"the ladder lacks the graph {lacking[0]}")
        for group in self.ladder.groups:
            taps = self.image.taps if group.side == "image" else self.text.taps
            for index in group.taps:
                if index >= len(taps):
                    raise ValueError(f"{group.input} reads tap {index}, the tower has {len(taps)}")
                if (taps[index].tokens, taps[index].width) != (group.tokens, group.width):
                    raise ValueError(f"{group.input} is not of the shape of the taps it reads")

    def names(self) -> set[str]:
        """Every file that anyone opens because this manifest names it."""
        ladder = self.ladder
        return {
            *self.model_names(),
            *self.tokenizer.files,
            ladder.initial,
            ladder.golden,
            *ladder.ort_training.values(),
        }

    def model_names(self) -> set[str]:
        """Those of them that are ONNX files."""
        towers = (*self.image.segments, *self.text.segments)
        trained = {
            name for role, name in self.ladder.ort_training.items() if role.endswith("_model")
        }
        return {
            *(segment.file for segment in towers),
            self.ladder.forward,
            *(graph.file for graph in self.ladder.graphs.values()),
            *trained,
        }
