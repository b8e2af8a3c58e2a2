"""What can be configured: training recipes and devices; every default once, with its reason.

Frozen records without anything heavy behind them: workers that count inside the budget hold them
too. `yaml_config` reads them from YAML; a record's own `__post_init__` refuses what contradicts
itself, with a ValueError that becomes part of the reader's message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from edgeladder.core.bounds import Ge, Gt, Le, Lt
from edgeladder.core.prompt_kinds import Kind, refused

MOST = 1_000_000_000  # of what is counted: larger numbers are slips of the keyboard
MOST_VIEWS = 64  # of a training picture: each costs a pass through the tower and a cached sample


class Strict:
    """What refuses unknown keys when `yaml_config` reads it."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class TapConfig(Strict):
    """Which intermediate activations of a tower the ladder reads."""

    count: Annotated[int, Ge(1), Le(64)] = 4  # evenly spaced over the blocks, the last included
    blocks: list[int] | None = None  # explicit block indices instead; negative counts from the end
    class_token: bool = True  # image: CLS (or the mean where a tower has none); text: end of text
    grid: Annotated[int, Ge(0), Le(8)] = 2  # image: grid x grid mean-pooled; text: `grid` spans


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Strict):
    """The prompts inside the ladder: where they act and how they are stored."""

    kind: Kind = "token"  # which combines with what: `prompt_kinds`
    length: Annotated[int, Ge(1), Le(256)] = 4  # tokens per rung
    couple: bool = True  # image prompts = text prompts + a learnt map of them (MaPLe-style)
    bits: Literal[1, 2, 4, 8] | None = None  # quantized prompts (QPrompt); None trains fp32
    # SPT, on the device from the cache: k-means centres of what enters the rung, or a sample of it
    initialize: Literal["random", "prototypes", "samples"] = "random"
    # condense to this share after training; 1 condenses nothing, but `edgeladder condense` can;
    # without it the ladder is exported without masks, a little faster
    keep: Annotated[float, Gt(0), Le(1)] | None = None
    # share of the prompts' values that a training step leaves out, the device's to change; without
    # it (not 0) the ladder is exported without the input that this needs
    dropout: Annotated[float, Ge(0), Lt(1)] | None = None
    # kind cross: attention weights that read the prompts. shared: the rung's own; copied: what
    # those were before training, trained on their own; frozen: copied and held still (CVPT)
    cross_weights: Literal["shared", "copied", "frozen"] = "shared"

    def __post_init__(self) -> None:
        reason = refused(
            self.kind,
            bits=self.bits,
            keep=self.keep,
            initialize=self.initialize,
            dropout=self.dropout,
            cross_weights=self.cross_weights,
        )
        if reason:
            raise ValueError(reason)


@dataclass(frozen=True, kw_only=True)
class LadderConfig(Strict):
    """The side network that is trained."""

    taps: TapConfig = TapConfig()
    text_taps: TapConfig | None = None  # None: the same as `taps`
    width: Annotated[int, Ge(8), Le(1024)] = 96  # of a rung; higher: more accurate, more memory
    heads: Annotated[int, Ge(1), Le(32)] = 4
    hidden: Annotated[float, Gt(0), Le(8)] = 4.0  # feed-forward width over `width`
    share: Literal["none", "trunk", "trunk+up"] = "trunk"  # of rungs between image and text
    fuse: Literal["gate", "sum"] = "gate"  # LST's gate, or plain addition
    aggregate: Literal["last", "unipt", "sherl"] = "last"
    project: bool = False  # ProLIP-style anchored change of CLIP's own image projection
    initialize: Literal["importance", "fisher", "directions", "random"] = "importance"
    # how text channels enter a shared trunk that was cut from image blocks
    align: Literal["select", "semi_orthogonal", "match", "procrustes", "ridge"] = "select"
    first: Literal["tap", "gated"] = "tap"  # a side's first state: its tap, or LST's gate times it
    prompts: PromptConfig = PromptConfig()

    def __post_init__(self) -> None:
        self._heads_divide_width()
        self._rungs_to_aggregate()

    def _heads_divide_width(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    def _rungs_to_aggregate(self) -> None:
        sides = (self.taps, self.text_taps or self.taps)
        rungs = max(t.count if t.blocks is None else len(t.blocks) for t in sides)
        if self.aggregate != "last" and rungs < 2:
            raise ValueError(f"aggregate {self.aggregate} mixes rungs, but one tap makes one rung")


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Strict):
    """A closed-form head on cached features, alone or beside the ladder."""

    # blend: the mean of kernel and gda, gda on the last tap and the embedding before projection
    kind: Literal["none", "gda", "proker", "kernel", "blend"] = "none"
    alone: bool = False  # the head instead of the ladder, which then is not trained
    weight: Annotated[float, Ge(0)] | None = None  # beside the ladder; None: 1, or see `folds`
    # pictures of a class from which `weight` counts in full; with fewer it counts in proportion
    full_at: Annotated[int, Ge(1), Le(MOST)] | None = None
    # a linear map of the last two taps, trained with mixup, joins the head, or a ladder without
    # one; None: it joins a head of kind blend beside a ladder, and no other
    linear: bool | None = None
    # choose it from held-out logits: so many further ladders are trained, each without its share
    # of the support pictures; training takes that many times as long
    folds: Annotated[int, Ge(0), Le(16)] = 0
    # keep features of support pictures, at most 600, that tell a picture of no class; without them
    # nothing is said to be unknown, and nothing of a picture is in an adapter without a head
    known: bool = True

    @property
    def has_linear(self) -> bool:
        """Whether a linear map is trained after the ladder."""
        beside = self.kind == "blend" and not self.alone
        return beside if self.linear is None else self.linear

    @property
    def fits_any(self) -> bool:
        """Whether anything is fitted on features after training."""
        return self.kind != "none" or self.has_linear

    def __post_init__(self) -> None:
        if self.kind == "none" and (self.alone or self.weight is not None or self.folds):
            raise ValueError("alone, weight and folds are of a head, but kind is none")
        if self.folds == 1:
            raise ValueError("folds 1 leaves nothing to train on: use 2 or more")
        if self.folds and (self.alone or self.weight is not None):
            raise ValueError(
                "folds choose the weight beside the ladder, but "
                + ("there is no ladder: alone" if self.alone else "weight fixes it")
            )
        if self.alone and self.weight is not None:
            raise ValueError("weight is beside a ladder, but the head is alone")


@dataclass(frozen=True, kw_only=True)
class LossConfig(Strict):
    """What the ladder minimises."""

    anchor: Annotated[float, Ge(0)] = 0.0  # KL to zero-shot logits: pulls back to zero-shot
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0  # label smoothing
    # ProLIP's lambda |W - W0|^2, in units of 1 / (pictures per class), on the projection's change
    # and on the ladder's way out: 1 is the paper's lambda = 1/N
    proximal: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Strict):
    """Optimiser and schedule."""

    epochs: Annotated[int, Ge(1), Le(MOST)] = 30
    steps: Annotated[int, Ge(1), Le(MOST)] | None = None  # instead of epochs
    batch: Annotated[int, Ge(1), Le(MOST)] = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    moments: Literal["auto", "fp32", "int8"] = "auto"  # auto: the plan takes int8 only if it must
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.01  # decoupled; none on biases and gates
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9  # momentum, where the optimizer is sgd
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    epsilon: Annotated[float, Gt(0)] = 1e-8
    warmup_epochs: Annotated[float, Ge(0)] = 1.0
    clip: Annotated[float, Gt(0)] = 1.0  # global gradient norm
    average: Annotated[float, Ge(0), Lt(1)] = 0.0  # weight averaging (EMA decay); 0: off
    views: Annotated[int, Ge(0), Le(MOST_VIEWS)] = 0  # cached augmented views per training picture
    seed: int = 0
    checkpoint_steps: Annotated[int, Ge(1), Le(MOST)] = 50
    checkpoint_seconds: Annotated[float, Gt(0)] = 30.0

    def __post_init__(self) -> None:
        if self.optimizer == "sgd" and self.moments == "int8":
            raise ValueError("moments int8 are AdamW's; sgd keeps one momentum in fp32")


@dataclass(frozen=True, kw_only=True)
class UnlabelledConfig(Strict):
    """Pictures without a label, which teach ladder and head by labels that the head gives them."""

    use: bool = True  # where there are any; false leaves them to `suggest`
    # how common the classes are among them: even where that is known, else it is estimated
    classes: Literal["estimated", "even"] = "estimated"


@dataclass(frozen=True, kw_only=True)
class CondenseConfig(Strict):
    """Prompt condensation, after training: `ladder.prompts.keep` says how much stays."""

    # of fine-tuning, the learning rate falling once more
    epochs: Annotated[int, Ge(0), Le(MOST)] = 10
    train: Literal["prompts", "all"] = "prompts"  # what fine-tuning may change


@dataclass(frozen=True, kw_only=True)
class Profile(Strict):
    """A training recipe: `profiles/*.yaml`."""

    name: str
    summary: str = ""
    paper: str = ""
    ladder: LadderConfig = LadderConfig()
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    unlabelled: UnlabelledConfig = UnlabelledConfig()
    condense: CondenseConfig = CondenseConfig()


@dataclass(frozen=True, kw_only=True)
class DeviceProfile(Strict):
    """Facts about a kind of device: `devices/*.yaml`."""

    name: str
    summary: str = ""
    ram_bytes: int  # physical; written as `4GiB`
    default_budget_bytes: int  # leaves room for the system and, on Jetson, the GPU
    cores: int
    architecture: Literal["aarch64", "armv7l", "x86_64"] = "aarch64"
    accelerator: str | None = None
    python: str | None = None  # the system's
    thermal_zones: list[str] = field(default_factory=list)
    # what brings onnxruntime a provider for it: JetPack's own build, or a distribution by name
    wheel: Literal["jetpack", "onnxruntime-gpu", "onnxruntime-openvino"] | None = None
    shared_gpu_memory: bool = False  # GPU allocations come out of RAM (Jetson)
    sources: dict[str, str] = field(default_factory=dict)  # fact -> where it is documented
