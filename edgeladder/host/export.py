"""The one way into a bundle: backbone segments, ladder graphs, gate, manifest."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

import edgeladder
from edgeladder.core.archive import pack
from edgeladder.core.bundle import Bundle, write_manifest
from edgeladder.core.config import Profile, TapConfig
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import building
from edgeladder.core.manifest import Manifest, ModelRecord, TowerRecord
from edgeladder.core.ownership import require_ours
from edgeladder.host.compile import training_artifacts as ort_training
from edgeladder.host.compile.artifact import write_ladder
from edgeladder.host.compile.gate import GateReport, check_ladder
from edgeladder.host.compile.int8_gate import Batch, calibration_batches, check_int8, spell_int8
from edgeladder.host.compile.segments import check_segments, write_segments
from edgeladder.host.model.backbone import Backbone, load_backbone, resolve_taps
from edgeladder.host.model.fisher import Importance, fisher, read_calibration
from edgeladder.host.model.initialize import Probes, initialize
from edgeladder.host.model.ladder import Ladder
from edgeladder.host.model.probe import TEXTS
from edgeladder.host.model.tokenizer import write_tokenizer
from edgeladder.runtime.towers.tokens import Tokenizer

Progress = Callable[[str], None]
ENGINES = ("auto", "all", "stock", "ort-training")
DTYPES = ("fp32", "int8", "int8-weights", "fp16")
_PACKAGES = ("torch", "open_clip_torch", "onnx", "onnxruntime", "onnxruntime-training-cpu", "numpy")
# weights narrowed on disk change the tower's numbers: what the gate then allows
_SEGMENT_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8-weights": 0.5}


@dataclass(frozen=True)
class ExportOptions:
    """What a bundle is to hold besides the model and the profile's ladder.

    Args:
        classes: class names to keep in the manifest; a device may bring its own.
        engine: `auto` adds onnxruntime-training's artifacts where that is installed, `all` and
            `ort-training` insist on them, `stock` leaves them out. Stock graphs are always there.
        dtype: of the backbone: `fp32`; `int8`, products in int8 arithmetic where calibration finds
            that they bear it; `int8-weights` or `fp16`, stored small and multiplied in float32.
        calibration: labelled pictures, for `ladder.initialize: fisher`, and if wanted `directions`
            and `dtype: int8`, which draws its own where there are none.
        tokenizer: folder of a Hugging Face tokenizer's files; None: the model's own, the hub's.
    """

    classes: Sequence[str] = ()
    engine: str = "auto"
    dtype: str = "fp32"
    calibration: Path | None = None
    tokenizer: Path | None = None

    def check(self, profile: Profile) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: unknown engine or dtype; pictures without use, or use without pictures.
        """
        for value, known, option in (
            (self.engine, ENGINES, "--engine"),
            (self.dtype, DTYPES, "--dtype"),
        ):
            if value not in known:
                raise ConfigError(
                    f"{value!r} is not one of {', '.join(known)}", where=option, remedy="choose one"
                )
        kind, given = profile.ladder.initialize, self.calibration is not None
        used = kind in ("fisher", "directions") or self.dtype == "int8"
        if (kind == "fisher" and not given) or (given and not used):
            raise ConfigError(
                "ladder.initialize: fisher needs pictures to measure on"
                if kind == "fisher"
                else f"ladder.initialize: {profile.ladder.initialize} uses no calibration pictures",
                where="--calibration",
                remedy="give a folder of class/picture with --calibration"
                if kind == "fisher"
                else "leave --calibration out, or add --set ladder.initialize=fisher",
            )

    @property
    def with_ort_training(self) -> bool:
        """Whether onnxruntime-training's artifacts are written."""
        insists = self.engine in ("all", "ort-training")
        return insists or (self.engine == "auto" and ort_training.available())


def export(
    model: str,
    pretrained: str | None,
    profile: Profile,
    options: ExportOptions = ExportOptions(),
    *,
    out: Path,
    progress: Progress = lambda note: None,
) -> Bundle:
    """Export a model and a profile's ladder as a bundle.

    Args:
        model: open_clip's or OpenAI's spelling of a name, `nano` or `nano-vit`.
        pretrained: a tag, a file, `none` for random weights, None for the usual tag.
        profile: which ladder, and the optimiser of onnxruntime-training's artifacts.
        options: engines, class names, precision of the towers' weights.
        out: folder of the bundle, or a path that ends in .tar for one file.
        progress: told what is being done.

    Raises:
        ConfigError: unknown model, tag, engine or dtype; a profile the model cannot follow; or
            `out` holds what no export wrote.
        EdgeLadderError: the numeric gate found a disagreement; no bundle is left behind.
        StorageError: the disk is full.
    """
    options.check(profile)
    folder = out.with_suffix("") if out.suffix == ".tar" else out
    require_ours(folder, "bundle")  # now, and not after minutes of work
    if out.suffix == ".tar":
        require_ours(out, "archive")
    progress(f"loading {model}")
    backbone = load_backbone(model, pretrained, options.tokenizer)
    with building(folder, "bundle") as temporary:
        _fill(temporary, backbone, profile, options, progress)
    bundle = Bundle.open(folder, verify=False)
    if out.suffix == ".tar":
        pack(folder, out)
    return bundle


def _fill(
    folder: Path,
    backbone: Backbone,
    profile: Profile,
    options: ExportOptions,
    progress: Progress,
) -> GateReport:
    tokenizer = write_tokenizer(backbone, folder)
    words, importance, pixels = Tokenizer.from_record(tokenizer, folder), None, None
    calibration = None
    if options.calibration is not None:
        calibration = read_calibration(backbone, options.calibration, words)
    batches = calibration_batches(backbone, words, calibration) if options.dtype == "int8" else {}
    towers = _towers(folder, backbone, profile, options.dtype, batches, progress)
    if calibration is not None and profile.ladder.initialize in ("fisher", "directions"):
        pixels = calibration.pixels
        if profile.ladder.initialize == "fisher":
            progress("Fisher information")
            importance = fisher(backbone, pixels, calibration.labels, calibration.tokens)
    probes = Probes(torch.from_numpy(words.encode(list(TEXTS))), pixels)
    ladder = build_ladder(
        *(backbone, profile, towers["image"], towers["text"]), importance=importance, probes=probes
    )
    record = write_ladder(
        ladder,
        backbone.logit_scale,
        folder,
        train=profile.train,
        with_ort_training=options.with_ort_training,
        progress=progress,
    )
    manifest = Manifest(
        model=ModelRecord(
            name=backbone.name,
            pretrained=backbone.pretrained,
            origin=backbone.origin,
            licence=backbone.licence,
            embedding_dim=backbone.embedding_dim,
            logit_scale=backbone.logit_scale,
            logit_bias=backbone.logit_bias,
        ),
        preprocess=backbone.preprocess,
        tokenizer=tokenizer,
        image=towers["image"],
        text=towers["text"],
        ladder=record,
        profile=profile,
        classes=list(options.classes),
        versions=_versions(),
    )
    progress("gate: ladder")
    report = check_ladder(ladder, backbone.logit_scale, Bundle(folder, manifest))
    write_manifest(folder, manifest)
    return report


def _towers(
    folder: Path,
    backbone: Backbone,
    profile: Profile,
    dtype: str,
    batches: dict[str, Batch],
    progress: Progress,
) -> dict[str, TowerRecord]:
    towers = {}
    for side in ("image", "text"):
        config = tap_config(profile, side)
        taps = resolve_taps(backbone, side, config)
        batch = batches.get(side)
        record = write_segments(
            *(backbone, side, taps, config, folder),
            dtype=dtype,
            calibration=None if batch is None else batch.inputs,
            progress=progress,
        )
        progress(f"gate: {side} tower")
        if batch is None:
            check_segments(backbone, side, record, config, folder, _SEGMENT_TOLERANCE[dtype])
        else:
            record = check_int8(backbone, side, record, config, folder, batch)
            progress(spell_int8(record))
        towers[side] = record
    return towers


def tap_config(profile: Profile, side: str) -> TapConfig:
    """A side's taps: the text's own where the profile gives them."""
    ladder = profile.ladder
    return ladder.text_taps if side == "text" and ladder.text_taps is not None else ladder.taps


def build_ladder(
    backbone: Backbone,
    profile: Profile,
    image: TowerRecord,
    text: TowerRecord,
    *,
    importance: Importance | None = None,
    probes: Probes | None = None,
) -> Ladder:
    """The ladder of a profile on a backbone's taps, initialised; see `initialize`.

    Raises:
        ConfigError: the profile projects, but the tower has nothing before its projection; or it
            asks for Fisher information of towers that have no transformer blocks.
    """
    if profile.ladder.project and image.embedding_pre is None:
        raise ConfigError(
            f"{backbone.name} has no projection to anchor",
            where="ladder.project",
            remedy="set ladder.project: false for this model",
        )
    if importance is not None and not importance:
        raise ConfigError(
            f"{backbone.name} has no transformer blocks whose Fisher information could be used",
            where="ladder.initialize",
            remedy="set ladder.initialize: importance for this model",
        )
    torch.manual_seed(profile.train.seed)
    width = _pre_width(image)
    ladder = Ladder(profile.ladder, image.taps, text.taps, backbone.embedding_dim, width)
    initialize(ladder, backbone, importance=importance, probes=probes)
    ladder.copy_attention()
    ladder.eval()
    return ladder


def _pre_width(image: TowerRecord) -> int | None:
    for segment in image.segments:
        for tensor in segment.outputs:
            if tensor.name == image.embedding_pre:
                return int(np.prod(tensor.shape))
    return None


def _versions() -> dict[str, str]:
    found = {"edgeladder": edgeladder.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
