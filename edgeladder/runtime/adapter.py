"""The adapter: what training made, small and separate from the bundle it belongs to.

`adapter.safetensors` holds the ladder's parameters and buffers (and a closed-form head's arrays,
if there is one), `adapter.json` says in words a person can read what they are. Quantized prompts
lie there as indices and a codebook, condensed ones without those that were dropped
(`prompt_storage`). It loads onto the same bundle anywhere and refuses another: a ladder on foreign
activations gives confident nonsense.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core import disk
from edgeladder.core.adapter_record import (
    AGAIN,
    KNOWN,
    RECORD,
    AdapterRecord,
    adapter_record_text,
    read_adapter_record,
)
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import replacing, sha256_file, write_text
from edgeladder.core.made_here import mark_made_here, require_trusted_adapter
from edgeladder.core.prompt_tensors import PackedPrompts
from edgeladder.core.signature import signature_path
from edgeladder.core.tensors import TensorFile, write_tensors
from edgeladder.core.trusted_keys import pinned_keys
from edgeladder.runtime.prompt_storage import pack, unpack

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.engine.protocol import Engine

Array = np.ndarray

WEIGHTS = "adapter.safetensors"
_WAITING = ".adapter.safetensors.next"  # new weights, until the record that names them is there
_HEAD = "head:"  # before the names of a head's arrays


@dataclass
class Adapter:
    """A trained ladder for one bundle."""

    parameters: dict[str, Array]  # by name, the ladder's buffers (codebooks, masks) among them
    record: AdapterRecord
    head_arrays: dict[str, Array] = field(default_factory=dict)
    known_arrays: dict[str, Array] = field(default_factory=dict)  # of `known.Known`

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
            raise IntegrityError(f"the adapter lacks {missing[0]}", remedy=AGAIN)
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
    now = datetime.datetime.now(datetime.timezone.utc)
    record = AdapterRecord(
        bundle_digest=bundle.digest,
        ladder_digest=sha256_file(bundle.path(bundle.manifest.ladder.forward)),
        model=bundle.manifest.model.name,
        profile=dict(profile or {}),
        classes=list(classes),
        class_names=list(class_names),
        templates=list(templates),
        text=dict(text or {}),
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        prompt_tensors=bundle.manifest.ladder.prompts,
    )
    return Adapter({**parameters, **(buffers or {})}, record)


def save_adapter(folder: Path, adapter: Adapter) -> PackedPrompts | None:
    """Write both files into `folder`, together: a power cut leaves what was there or what is new.

    The record names the weights by their hash, and its rename decides. New weights wait beside old
    ones until then; whoever reads in between finds them there (`weights_of`).

    Returns:
        How the prompts are stored (`prompt_storage.pack`); None where they lie there as they are.

    Raises:
        StorageError: no space left.
    """
    folder = Path(folder)
    packed, prompts = pack(adapter.parameters, adapter.record.prompt_tensors)
    head_arrays = {_HEAD + name: array for name, array in adapter.head_arrays.items()}
    weights = folder / (_WAITING if (folder / RECORD).is_file() else WEIGHTS)
    _settle(folder)
    known_arrays = {KNOWN + name: array for name, array in adapter.known_arrays.items()}
    write_tensors(weights, {**packed, **head_arrays, **known_arrays})
    record = replace(adapter.record, prompts=prompts, sha256=sha256_file(weights))
    text = adapter_record_text(record)
    mark_made_here(folder, text.encode())
    write_text(folder / RECORD, text)
    _settle(folder)
    disk.unlink(folder / _WAITING)
    disk.unlink(signature_path(folder, "adapter"))  # it was of what lay here before
    return prompts


def _settle(folder: Path) -> None:
    """Give weights that wait their name, where the record means them.

    They are copied, for a file system without a journal may lose a rename's both ends.
    """
    waiting = waiting_weights(folder)
    if waiting is None:
        return
    with (
        replacing(folder / WEIGHTS) as temporary,
        disk.create(temporary) as stream,
        open(waiting, "rb") as source,
    ):
        shutil.copyfileobj(source, stream)


def waiting_weights(folder: Path) -> Path | None:
    """Weights that the record means and that wait for their name since a power cut, if any do."""
    waiting = folder / _WAITING
    if not waiting.is_file() or not (folder / RECORD).is_file():
        return None
    try:
        meant = weights_of(folder, read_adapter_record(folder))
    except IntegrityError:  # no adapter any more: who writes one replaces it
        return None
    return waiting if meant == waiting else None


def weights_of(folder: Path, record: AdapterRecord) -> Path:
    """The file of an adapter's weights: after a power cut they may wait for their name.

    Raises:
        IntegrityError: there are none with the record's hash.
    """
    for path in (folder / WEIGHTS, folder / _WAITING):
        if path.is_file() and (not record.sha256 or sha256_file(path) == record.sha256):
            return path
    raise IntegrityError(f"{WEIGHTS} is not what {RECORD} says", where=str(folder), remedy=AGAIN)


def load_adapter(path: Path, bundle: Bundle | None = None, *, trusted: bool = True) -> Adapter:
    """Read an adapter from a run directory (or one of its two files).

    Args:
        path: folder with the two files, or either file.
        bundle: the bundle it shall run on; None leaves that unchecked.
        trusted: where publishers are pinned, one of them must have signed it, or this machine
            made it.

    Raises:
        ConfigError: there is no adapter.
        IntegrityError: of another version, changed, trained on another bundle, or not trusted.
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
    if trusted:
        require_trusted_adapter(folder)
    record = read_adapter_record(folder)
    if trusted and pinned_keys():
        require_hashed(record, where=str(folder))
    stored, head_arrays, known_arrays = _tensors(weights_of(folder, record))
    parameters = unpack(stored, record.prompts, record.prompt_tensors)
    adapter = Adapter(parameters, record, head_arrays, known_arrays)
    if bundle is not None:
        check_bundle(adapter, bundle, where=str(folder))
    return adapter


def require_hashed(record: AdapterRecord, *, where: str) -> None:
    """Refuse a record whose signature would say nothing of the weights.

    Raises:
        IntegrityError: an early version wrote it, without the hash of its weights.
    """
    if not record.sha256:
        raise IntegrityError(
            f"this {RECORD} holds no hash of the weights: a signature of it is none of theirs",
            where=where,
            remedy="train again; version 0.3 and later write the hash",
        )


def check_bundle(adapter: Adapter, bundle: Bundle, *, where: str) -> None:
    """Refuse a bundle that the adapter was not trained on.

    Raises:
        IntegrityError: the bundle's digest differs.
    """
    record = adapter.record
    if record.bundle_digest != bundle.digest:
        raise IntegrityError(
            f"this adapter belongs to another bundle (model {record.model}, bundle "
            f"{record.bundle_digest[:12]}; given: {bundle.manifest.model.name}, "
            f"{bundle.digest[:12]})",
            where=where,
            remedy="name the bundle it was trained on with --bundle, or train on this one",
        )


def _tensors(path: Path) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """The ladder's tensors, the head's arrays, and those of known pictures."""
    ladder: dict[str, Array] = {}
    head: dict[str, Array] = {}
    known: dict[str, Array] = {}
    for name, array in TensorFile(path, remedy=AGAIN).items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise IntegrityError(
                f"the adapter's {name} holds NaN or infinity", where=str(path), remedy=AGAIN
            )
        if name.startswith(_HEAD):
            head[name.removeprefix(_HEAD)] = array
        elif name.startswith(KNOWN):
            known[name.removeprefix(KNOWN)] = array
        else:
            ladder[name] = array
    return ladder, head, known
