"""Configuration: sizes, profiles, devices; every default once, with its reason.

YAML is read here and nowhere else, because PyYAML reads `1e-5` as a string and `no` as False:
the typed models below coerce what it yields, refuse unknown keys and report all errors at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeladder.core.errors import ConfigError
from edgeladder.core.old_words import modern_profile, modern_setting
from edgeladder.core.sizes import format_size as format_size  # part of this module's public face
from edgeladder.core.sizes import parse_size as parse_size


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The closest of `names` to a misspelt `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return matches[0] if matches else None


class Strict(BaseModel):
    """A model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class TapConfig(Strict):
    """Which intermediate activations of a tower the ladder reads."""

    count: int = Field(default=4, ge=1, le=64)  # evenly spaced over the blocks, the last included
    blocks: list[int] | None = None  # explicit block indices instead; negative counts from the end
    class_token: bool = True  # image: CLS (or the mean where a tower has none); text: end of text
    grid: int = Field(default=2, ge=0, le=8)  # image: grid x grid mean-pooled; text: `grid` spans


class PromptConfig(Strict):
    """The prompts inside the ladder: where they act and how they are stored."""

    kind: Literal["none", "token", "cross", "diffusion", "memory"] = "token"
    length: int = Field(default=4, ge=1, le=256)  # tokens per rung
    couple: bool = True  # image prompts = text prompts + a learnt map of them (MaPLe-style)
    bits: Literal[1, 2, 4, 8] | None = None  # quantized prompts (QPrompt); None trains fp32
    # SPT, on the device from the cache: k-means centres of what enters the rung, or a sample of it
    initialize: Literal["random", "prototypes", "samples"] = "random"
    # condense to this share after training; 1 condenses nothing, but `edgeladder condense` can;
    # without it the ladder is exported without masks, a little faster
    keep: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _prompts_to_change(self) -> PromptConfig:
        if self.kind == "none":
            asked = {"bits": self.bits, "keep": self.keep}
            given = [name for name, value in asked.items() if value is not None]
            given += ["initialize"] * (self.initialize != "random")
            if given:
                raise ValueError(
                    f"{' and '.join(given)} given, but kind none has no prompts to quantize, "
                    "condense or initialize"
                )
        return self


class LadderConfig(Strict):
    """The side network that is trained."""

    taps: TapConfig = TapConfig()
    text_taps: TapConfig | None = None  # None: the same as `taps`
    width: int = Field(default=96, ge=8, le=1024)  # of a rung; higher: more accurate, more memory
    heads: int = Field(default=4, ge=1, le=32)
    hidden: float = Field(default=4.0, gt=0, le=8)  # feed-forward width over `width`
    share: Literal["none", "trunk", "trunk+up"] = "trunk"  # of rungs between image and text
    fuse: Literal["gate", "sum"] = "gate"  # LST's gate, or plain addition
    aggregate: Literal["last", "unipt", "sherl"] = "last"
    project: bool = False  # ProLIP-style anchored change of CLIP's own image projection
    initialize: Literal["importance", "fisher", "random"] = "importance"
    prompts: PromptConfig = PromptConfig()

    @model_validator(mode="after")
    def _heads_divide_width(self) -> LadderConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @model_validator(mode="after")
    def _rungs_to_aggregate(self) -> LadderConfig:
        sides = (self.taps, self.text_taps or self.taps)
        rungs = max(t.count if t.blocks is None else len(t.blocks) for t in sides)
        if self.aggregate != "last" and rungs < 2:
            raise ValueError(f"aggregate {self.aggregate} mixes rungs, but one tap makes one rung")
        return self


class HeadConfig(Strict):
    """A closed-form head on cached features, alone or as a term beside the ladder."""

    # blend: the mean of kernel and gda, gda on the last tap and the embedding before projection
    kind: Literal["none", "gda", "proker", "kernel", "blend"] = "none"
    alone: bool = False  # the head instead of the ladder, which then is not trained
    weight: float | None = Field(default=None, ge=0)  # eta of the term; None: 1, or see `folds`
    # pictures of a class from which `weight` counts in full; with fewer it counts in proportion
    full_at: int | None = Field(default=None, ge=1)
    # choose eta from held-out logits: so many further ladders are trained, each without its share
    # of the support pictures; training takes that many times as long
    folds: int = Field(default=0, ge=0, le=16)

    @model_validator(mode="after")
    def _one_way_to_weigh(self) -> HeadConfig:
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
        return self


class LossConfig(Strict):
    """What the ladder minimises."""

    anchor: float = Field(default=0.0, ge=0)  # KL to zero-shot logits: pulls back to zero-shot
    smoothing: float = Field(default=0.0, ge=0, lt=1)  # label smoothing
    # ProLIP's lambda |W - W0|^2, in units of 1 / (pictures per class), on the projection's change
    # and on the ladder's way out: 1 is the paper's lambda = 1/N
    proximal: float = Field(default=0.0, ge=0)


class TrainConfig(Strict):
    """Optimiser and schedule."""

    epochs: int = Field(default=30, ge=1)
    steps: int | None = Field(default=None, ge=1)  # instead of epochs
    batch: int = Field(default=32, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    moments: Literal["auto", "fp32", "int8"] = "auto"  # auto: the plan takes int8 only if it must
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)  # decoupled; none on biases and gates
    beta1: float = Field(default=0.9, ge=0, lt=1)  # momentum, where the optimizer is sgd
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    warmup_epochs: float = Field(default=1.0, ge=0)
    clip: float = Field(default=1.0, gt=0)  # global gradient norm
    average: float = Field(default=0.0, ge=0, lt=1)  # weight averaging (EMA decay); 0: off
    views: int = Field(default=0, ge=0, le=64)  # cached augmented views per training picture
    seed: int = 0
    checkpoint_steps: int = Field(default=50, ge=1)
    checkpoint_seconds: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _moments_to_narrow(self) -> TrainConfig:
        if self.optimizer == "sgd" and self.moments == "int8":
            raise ValueError("moments int8 are AdamW's; sgd keeps one momentum in fp32")
        return self


class CondenseConfig(Strict):
    """Prompt condensation, after training: `ladder.prompts.keep` says how much stays."""

    epochs: int = Field(default=10, ge=0)  # of fine-tuning, the learning rate falling once more
    train: Literal["prompts", "all"] = "prompts"  # what fine-tuning may change


class Profile(Strict):
    """A training recipe: `profiles/*.yaml`."""

    name: str
    summary: str = ""
    paper: str = ""
    ladder: LadderConfig = LadderConfig()
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    condense: CondenseConfig = CondenseConfig()


class Fact(Strict):
    """A device fact with its source."""

    value: float | int | str
    source: str


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
    thermal_zones: list[str] = []
    shared_gpu_memory: bool = False  # GPU allocations come out of RAM (Jetson)
    sources: dict[str, str] = {}  # fact -> where it is documented

    @model_validator(mode="before")
    @classmethod
    def _sizes(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = dict(values)
            for key in ("ram_bytes", "default_budget_bytes"):
                if isinstance(values.get(key), str):
                    values[key] = parse_size(values[key])
        return values


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Any, *, where: str) -> Model:
    """Build `model` from plain values, flattening every error to `message @ path`.

    Raises:
        ConfigError: with all errors, and the nearest key for each unknown one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            path = ".".join(str(part) for part in item["loc"]) or "(top)"
            if item["type"] == "extra_forbidden":
                guess = nearest(str(item["loc"][-1]), _keys_at(model, item["loc"][:-1]))
                hint = f", did you mean {guess!r}?" if guess else ""
                lines.append(f"unknown key @ {path}{hint}")
            else:
                lines.append(f"{item['msg']} @ {path}")
        raise ConfigError("; ".join(lines), where=where, remedy="correct the keys named") from None


def _keys_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        ConfigError: unreadable, or not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read YAML: {error}", where=str(path), remedy="correct the file"
        ) from error


def library(kind: Literal["devices", "profiles"]) -> dict[str, Path]:
    """Names and files of the shipped YAML library `devices` or `profiles`."""
    packaged = Path(str(resources.files("edgeladder"))) / "_library" / kind
    folder = packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _load(kind: Literal["devices", "profiles"], model: type[Model], name: str) -> Model:
    known = library(kind)
    path = known.get(name)
    if path is None and name.endswith((".yaml", ".yml")):
        path = Path(name)
    if path is None:
        guess = nearest(name, known)
        hint = f"did you mean {guess!r}? " if guess else ""
        noun = kind[:-1]
        raise ConfigError(
            f"unknown {noun} {name!r}",
            remedy=f"{hint}`edgeladder {kind}` lists them; a .yaml file of yours works too",
        )
    return validate(model, modern_profile(read_yaml(path)), where=str(path))


def load_device(name: str) -> DeviceProfile:
    """A shipped device by name, or one from a YAML file.

    Raises:
        ConfigError: unknown (the nearest name is suggested) or invalid.
    """
    return _load("devices", DeviceProfile, name)


def load_profile(name: str, overrides: Iterable[str] = ()) -> Profile:
    """A shipped profile by name or one from a YAML file, with `a.b=c` overrides applied.

    Raises:
        ConfigError: unknown or invalid profile or key (the nearest is suggested).
    """
    profile = _load("profiles", Profile, name)
    return override(profile, overrides)


def override(profile: Profile, overrides: Iterable[str]) -> Profile:
    """The profile with `a.b=c` assignments applied; values are parsed as YAML and coerced."""
    values = profile.model_dump()
    for assignment in overrides:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(
                f"--set {assignment!r} has no '='", remedy="write --set train.batch=16"
            )
        target = values
        *parents, last = modern_setting(key.strip()).split(".")
        for part in parents:
            if target.get(part, 0) is None:
                target[part] = {}
            if not isinstance(target.get(part), dict):
                guess = nearest(part, target)
                raise ConfigError(
                    f"unknown key {key!r} @ {part}"
                    + (f", did you mean {guess!r}?" if guess else ""),
                    where="--set",
                    remedy="`edgeladder profiles show default` lists every key",
                )
            target = target[part]
        target[last] = yaml.safe_load(text)
    return validate(Profile, values, where="--set")
