"""The adapter: what training made, small and separate from the bundle it belongs to.

`adapter.safetensors` holds the ladder's parameters and buffers (and a closed-form head's arrays,
if there is one), `adapter.json` says in words a person can read what they are. Quantized prompts
lie there as indices and a codebook, condensed ones without those that were dropped (`prompts.py`).
It loads onto the same bundle anywhere and refuses another: a ladder on foreign activations gives
confident nonsense.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import read_json, sha256_file, write_json
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.core.records import from_json, to_json
from edgeladder.core.tensors import TensorFile, write_tensors
from edgeladder.runtime.prompt_storage import pack, unpack

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.engine.protocol import Engine

Array = np.ndarray

SCHEMA_VERSION = 1
WEIGHTS, RECORD = "adapter.safetensors", "adapter.json"
_HEAD = "head:"  # before the names of a head's arrays
_AGAIN = "copy both files again from the run that wrote them"


@dataclass
class Adapter:
    """A trained ladder for one bundle."""

    parameters: dict[str, Array]  # by name, the ladder's buffers (codebooks, masks) among them
    classes: list[str]  # folder names, in label order
    class_names: list[str]  # what the text tower reads
    templates: list[str]
    bundle_digest: str = ""
    ladder_digest: str = ""  # SHA-256 of ladder/forward.onnx
    prompt_tensors: PromptTensors = PromptTensors()  # which of the parameters are prompts
    model: str = ""
    profile: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] | None = None  # its plain values, `eta` among them
    head_arrays: dict[str, Array] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    created: str = ""

    def apply(self, engine: Engine) -> None:
        """Put parameters and buffers into an engine.

        Raises:
            IntegrityError: names or shapes are not the engine's.
        """
        parameters, buffers = engine.parameters(), engine.buffers()
        known = {**parameters, **buffers}
        for name, value in self.parameters.items():
            if name not in known or known[name].shape != value.shape:
                raise IntegrityError(
                    f"the adapter's {name} {list(value.shape)} is not the ladder's",
                    remedy="use the bundle that the adapter was trained on",
                )
        missing = sorted(set(known) - set(self.parameters))
        if missing:
            raise IntegrityError(f"the adapter lacks {missing[0]}", remedy=_AGAIN)
        engine.set_parameters({name: self.parameters[name] for name in parameters})
        if buffers:
            engine.set_buffers({name: self.parameters[name] for name in buffers})


def adapter_of(
    bundle: Bundle,
    parameters: Mapping[str, Array],
    *,
    classes: list[str],
    class_names: list[str],
    templates: list[str],
    buffers: Mapping[str, Array] | None = None,
    profile: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Adapter:
    """An adapter that belongs to `bundle`, dated now."""
    return Adapter(
        parameters={**parameters, **(buffers or {})},
        classes=list(classes),
        class_names=list(class_names),
        templates=list(templates),
        bundle_digest=bundle.digest,
        ladder_digest=sha256_file(bundle.path(bundle.manifest.ladder.forward)),
        prompt_tensors=bundle.manifest.ladder.prompts,
        model=bundle.manifest.model.name,
        profile=dict(profile or {}),
        text=dict(text or {}),
        created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def save_adapter(folder: Path, adapter: Adapter) -> dict[str, Any] | None:
    """Write both files into `folder`, each atomically; the record last, with the other's hash.

    Returns:
        How the prompts are stored (`prompts.pack`); None where they lie there as they are.

    Raises:
        StorageError: no space left.
    """
    folder = Path(folder)
    packed, prompts = pack(adapter.parameters, adapter.prompt_tensors)
    head_arrays = {_HEAD + name: array for name, array in adapter.head_arrays.items()}
    write_tensors(folder / WEIGHTS, {**packed, **head_arrays})
    write_json(
        folder / RECORD,
        {
            "schema_version": SCHEMA_VERSION,
            "bundle_digest": adapter.bundle_digest,
            "ladder_digest": adapter.ladder_digest,
            "model": adapter.model,
            "profile": adapter.profile,
            "classes": adapter.classes,
            "class_names": adapter.class_names,
            "templates": adapter.templates,
            "text": adapter.text,
            "created": adapter.created,
            "prompts": prompts,  # how they are stored; None: as they are
            "prompt_tensors": to_json(adapter.prompt_tensors),
            "head": adapter.head,
            "sha256": sha256_file(folder / WEIGHTS),
        },
    )
    return prompts


def load_adapter(path: Path, bundle: Bundle | None = None) -> Adapter:
    """Read an adapter from a run directory (or one of its two files).

    Args:
        path: folder with the two files, or either file.
        bundle: the bundle it shall run on; None leaves that unchecked.

    Raises:
        ConfigError: there is no adapter.
        IntegrityError: of another version, changed, or trained on another bundle.
    """
    folder = Path(path)
    if folder.name in (WEIGHTS, RECORD):
        folder = folder.parent
    for name in (WEIGHTS, RECORD):
        if not (folder / name).is_file():
            raise ConfigError(
                f"no adapter here: {name} is missing",
                where=str(folder),
                remedy="name a finished run with --run; an interrupted one finishes with "
                "`edgeladder train --resume RUN`",
            )
    record = _record(folder)
    digest = record.get("sha256")
    if digest and sha256_file(folder / WEIGHTS) != digest:
        raise IntegrityError(
            f"{WEIGHTS} is not what {RECORD} says", where=str(folder), remedy=_AGAIN
        )
    parameters, head_arrays = _tensors(folder / WEIGHTS)
    names = from_json(PromptTensors, record.get("prompt_tensors") or {}, where=str(folder / RECORD))
    adapter = Adapter(
        parameters=unpack(parameters, record.get("prompts"), names),
        prompt_tensors=names,
        head_arrays=head_arrays,
        classes=list(record["classes"]),
        class_names=list(record.get("class_names") or record["classes"]),
        templates=list(record.get("templates") or []),
        bundle_digest=record["bundle_digest"],
        ladder_digest=record["ladder_digest"],
        model=_model_name(record.get("model")),
        profile=dict(record.get("profile") or {}),
        head=record.get("head"),
        text=dict(record.get("text") or {}),
        created=str(record.get("created") or ""),
    )
    if bundle is not None:
        check_bundle(adapter, bundle, where=str(folder))
    return adapter


def check_bundle(adapter: Adapter, bundle: Bundle, *, where: str) -> None:
    """Refuse a bundle that the adapter was not trained on.

    Raises:
        IntegrityError: the bundle's digest differs.
    """
    if adapter.bundle_digest != bundle.digest:
        raise IntegrityError(
            f"this adapter belongs to another bundle (model {adapter.model}, bundle "
            f"{adapter.bundle_digest[:12]}; given: {bundle.manifest.model.name}, "
            f"{bundle.digest[:12]})",
            where=where,
            remedy="name the bundle it was trained on with --bundle, or train on this one",
        )


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / RECORD)
        version = record["schema_version"]
        if version == SCHEMA_VERSION:
            for key in ("classes", "bundle_digest", "ladder_digest"):
                record[key]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"unreadable {RECORD}: {error!r}", where=str(folder), remedy=_AGAIN
        ) from error
    if version != SCHEMA_VERSION:
        raise IntegrityError(
            f"adapter version {version}, this edgeladder reads version {SCHEMA_VERSION}",
            where=str(folder),
            remedy="use the edgeladder version that trained it, or train again",
        )
    return dict(record)


def _model_name(model: Any) -> str:
    return str(model.get("name", "")) if isinstance(model, dict) else str(model or "")


def _tensors(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """The ladder's tensors, and the head's arrays."""
    ladder: dict[str, Array] = {}
    head: dict[str, Array] = {}
    for name, array in TensorFile(path, remedy=_AGAIN).items():
        if name.startswith(_HEAD):
            head[name.removeprefix(_HEAD)] = array
        else:
            ladder[name] = array
    return ladder, head
