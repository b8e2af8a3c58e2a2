"""Fuzzed: files that EdgeLadder itself writes, and the bundle's."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edgeladder.budget.planner import plan
from edgeladder.budget.workload import Workload
from edgeladder.core.archive import unpack
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import IntegrityError
from edgeladder.core.onnx_check import check_model
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.ownership import MANIFEST
from edgeladder.core.plan import MachineBaseline
from edgeladder.core.records import to_json
from edgeladder.core.run_config import read_config
from edgeladder.core.tensors import TensorFile, write_tensors
from edgeladder.jobs.checkpoint import Checkpoints
from edgeladder.runtime.adapter import adapter_of, load_adapter, save_adapter
from edgeladder.runtime.cache.layout import Layout
from edgeladder.runtime.cache.selection import Selection, stack_keys
from edgeladder.runtime.cache.store import INDEX, ActivationCache, sample_key
from edgeladder.runtime.towers.tokens import Tokenizer
from tools.fuzz.targets import Refused, Target, digest

_MB = 1_000_000
_BASELINE = MachineBaseline(20 * _MB, 60 * _MB, 50 * _MB, 10 * _MB, 0, 0, 0)
_ARRAYS: dict[str, np.ndarray] = {
    "gate": np.arange(6, dtype=np.float32).reshape(2, 3),
    "mask": np.ones(5, np.uint8),
    "step": np.array(7, np.int64),
}


def scratch(seeds: Path, name: str) -> Path:
    """A folder beside the bundle for what a target's seeds are made of."""
    folder = seeds.parent / "fuzz-seeds" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _bundle(folder: Path) -> Bundle:
    return Bundle.open(folder, verify=False)


# ---- the bundle

_known: dict[str, Path] = {}  # the bundle's folder, which parsers need beside their input


def _with_bundle(folder: Path) -> Path:
    _known["bundle"] = folder
    return folder


def _manifest_seeds(bundle: Path) -> list[bytes]:
    """The tiny bundle's; its other files lie linked where each input is written beside them."""
    place = scratch(_with_bundle(bundle), "manifest")
    for path in sorted(bundle.rglob("*")):
        target = place / path.relative_to(bundle)
        if path.is_dir():
            target.mkdir()
        elif path.name != MANIFEST:
            os.link(path, target)
    _known["manifest"] = place
    return [(bundle / MANIFEST).read_bytes()]


# of graphs that no input changes: what they hold is checked once, by far the longest part
_checked = functools.cache(check_model)


def _plan(bundle: Bundle) -> Any:
    manifest = bundle.manifest
    sides = [Layout(bundle, "image", "fp16").name, Layout(bundle, "text", "int8").name]
    files = {key: record.size for key, record in manifest.files.items()}
    workload = Workload(manifest=manifest, classes=3, pictures=24, batch=8, files=files)
    return [sides, to_json(plan(workload, _BASELINE, 1000 * _MB).phases)]


def _manifest(content: bytes, folder: Path) -> Any:
    place = _known["manifest"]
    (place / MANIFEST).write_bytes(content)
    with mock.patch("edgeladder.core.onnx_check.check_model", _checked):
        return _plan(Bundle.open(place, verify=False))


def _tar_seeds(bundle: Path) -> list[bytes]:
    """A bundle's manifest and two of its files: a few kilobytes."""
    values = json.loads((_with_bundle(bundle) / MANIFEST).read_bytes())
    kept = {"ladder/norm.onnx", "ladder/sgd.onnx"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(MANIFEST)
        text = json.dumps(values).encode()
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
        for name in sorted(kept):
            tar.add(bundle / name, name)
    return [out.getvalue()]


def _tar(content: bytes, folder: Path) -> Any:
    inside = folder / "inside"
    inside.mkdir()
    (inside / "bundle.tar").write_bytes(content)
    try:
        found = unpack(inside / "bundle.tar")
        return sorted(path.relative_to(found).as_posix() for path in found.rglob("*"))
    finally:
        escaped = [path.name for path in folder.iterdir() if path != inside]
        linked = [path for path in inside.rglob("*") if path.is_symlink()]
        assert not escaped and not linked, f"a member got out: {escaped}{linked}"


def _tokenizer_seeds(bundle: Path) -> list[bytes]:
    """The bundle's own is 1.7 MB: one of the same kind with a small vocabulary stands for it."""
    vocabulary = {chr(97 + n): n for n in range(26)}
    vocabulary |= {f"{chr(97 + n)}</w>": 26 + n for n in range(26)} | {"ab": 52, "<|end|>": 53}
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<|end|>", "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False,
        "vocab": vocabulary, "merges": ["a b"],
    }  # fmt: skip
    added = {"id": 53, "content": "<|end|>", "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}  # fmt: skip
    values = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [added],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    _with_bundle(bundle)
    return [json.dumps(values).encode()]


def _tokenizer(content: bytes, folder: Path) -> Any:
    from dataclasses import replace

    (folder / "tokenizer.json").write_bytes(content)
    record = replace(_bundle(_known["bundle"]).manifest.tokenizer, files=["tokenizer.json"])
    return Tokenizer.from_record(record, folder).encode(["a photo of a cab.", ""]).tolist()


def _onnx_seeds(bundle: Path) -> list[bytes]:
    names = ["ladder/norm.onnx", "ladder/loss.onnx", "ladder/sgd.onnx", "ladder/forward.onnx"]
    image = sorted((bundle / "backbone/image").glob("*.onnx"))[:2]
    _with_bundle(bundle)
    return [*((bundle / name).read_bytes() for name in names), *(p.read_bytes() for p in image)]


def _onnx(content: bytes, folder: Path) -> Any:
    weights = _known["bundle"] / "backbone/image"
    for path in weights.iterdir():
        if path.suffix != ".onnx":
            os.link(path, folder / path.name)
    (folder / "model.onnx").write_bytes(content)
    graph = Graph()
    graph.join(folder / "model.onnx", "one/", {})
    return len(graph.serialized())


def _weights_seeds(bundle: Path) -> list[bytes]:
    _with_bundle(bundle)
    image = bundle / "backbone/image"
    return [min((p for p in image.iterdir() if p.suffix != ".onnx"), key=os.path.getsize)
            .read_bytes()]  # fmt: skip


def _weights(content: bytes, folder: Path) -> Any:
    """External data: what `deploy` streams into its file, of whatever length it is."""
    image = _known["bundle"] / "backbone/image"
    smallest = min((p for p in image.iterdir() if p.suffix != ".onnx"), key=os.path.getsize)
    (folder / smallest.name).write_bytes(content)
    path = folder / f"{smallest.name.split('.')[0]}.onnx"
    os.link(image / path.name, path)
    graph = Graph()
    graph.join(path, "one/", {})
    return len(graph.serialized())


# ---- tensors


def _tensor_seeds(bundle: Path) -> list[bytes]:
    path = scratch(bundle, "tensors") / "a.safetensors"
    write_tensors(path, _ARRAYS, {"note": "a"})
    return [path.read_bytes(), (bundle / "ladder/golden.safetensors").read_bytes()]


def _tensors(content: bytes, folder: Path) -> Any:
    """A file whose checksum does not hold counts as refused."""
    (folder / "a.safetensors").write_bytes(content)
    stored = TensorFile(folder / "a.safetensors")
    if not stored.intact():
        raise IntegrityError("its checksum does not hold")
    return digest(dict(stored.items()))


def _selection_seeds(bundle: Path) -> list[bytes]:
    keys = np.arange(96, dtype=np.uint8).reshape(2, 3, 16)
    labels = np.array([0, 1, 2], np.int32)
    names = ["a", "b", "c"]
    selection = Selection(keys, labels, keys[0], labels, keys[0], names, names, ["a {}."])
    path = scratch(bundle, "selection") / "selection.safetensors"
    selection.save(path)
    return [path.read_bytes()]


def _selection(content: bytes, folder: Path) -> Any:
    (folder / "selection.safetensors").write_bytes(content)
    found = Selection.load(folder / "selection.safetensors")
    return [found.train_keys.tobytes(), found.train_labels.tobytes(), found.classes, found.dtype]


def _checkpoint_seeds(bundle: Path) -> list[bytes]:
    checkpoints = Checkpoints(scratch(bundle, "checkpoints"))
    made = []
    for step in (200, 300):
        loop = {"batches": {"epoch": step // 100}, "loss": 0.5, "callbacks": {}}
        tensors = {name: array + array.dtype.type(step // 100) for name, array in _ARRAYS.items()}
        made.append(checkpoints.save(step, tensors, loop).read_bytes())
    _known["checkpoints"] = checkpoints.folder
    return made[1:]


def _checkpoint(content: bytes, folder: Path) -> Any:
    """The newest generation is the input, the one before it is whole."""
    older = next(iter(sorted(_known["checkpoints"].glob("step-*"))))
    os.link(older, folder / older.name)
    (folder / "step-000000300.safetensors").write_bytes(content)
    found = Checkpoints(folder).latest()
    if found is None or found.loop["step"] == 200:
        raise IntegrityError("it went back to the generation before")
    return [digest(dict(found.tensors.items())), json.dumps(found.loop, sort_keys=True)]


# ---- the cache


def _samples(bundle: Bundle, count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]]
    shapes = {tap.name: (tap.tokens, tap.width) for tap in bundle.manifest.image.taps}
    shapes["embedding"] = (bundle.manifest.model.embedding_dim,)
    for field in Layout(bundle, "image", "fp16").fields:
        if field.name == "embedding_pre":
            shapes["embedding_pre"] = field.shape
    return {name: random.normal(size=(count, *shape)).astype(np.float32)
            for name, shape in shapes.items()}  # fmt: skip


_KEYS = [sample_key(bytes([n])) for n in range(6)]


def _cache(bundle: Path) -> Path:
    """A store of six samples in two shards."""
    folder = scratch(_with_bundle(bundle), "cache")
    opened = _bundle(bundle)
    outputs = _samples(opened, len(_KEYS))
    room = 3 * Layout(opened, "image", "fp16").sample_bytes
    cache = ActivationCache.open(folder, opened, "image", writable=True, shard_bytes=room)
    cache.put(_KEYS, outputs)
    cache.close()
    _known["store"] = cache.folder
    return cache.folder


def _index_seeds(bundle: Path) -> list[bytes]:
    return [(_cache(bundle) / INDEX).read_bytes()]


def _shard_seeds(bundle: Path) -> list[bytes]:
    return [sorted(_cache(bundle).glob("0*.safetensors"))[0].read_bytes()]


def _read_store(content: bytes, folder: Path, name: str) -> Any:
    store = _known["store"]
    place = folder / store.name
    place.mkdir()
    for path in store.iterdir():
        if path.name != name and path.suffix:
            os.link(path, place / path.name)
    (place / name).write_bytes(content)
    opened = _bundle(_known["bundle"])
    cache = ActivationCache.open(folder, opened, "image")
    found = cache.find(stack_keys(_KEYS))
    there = found[found >= 0]
    if len(there) < len(_KEYS):
        raise IntegrityError("samples are missing: precompute computes them anew")
    arrays = {"embeddings": cache.embeddings(there)}
    for number, group in enumerate(g for g in opened.manifest.ladder.groups if g.side == "image"):
        arrays[f"taps{number}"] = cache.taps(there, group)
    return digest(arrays)


def _index(content: bytes, folder: Path) -> Any:
    return _read_store(content, folder, INDEX)


def _shard(content: bytes, folder: Path) -> Any:
    return _read_store(content, folder, "00000000.safetensors")


# ---- adapters and runs


def _adapter_folder(bundle: Path) -> Path:
    folder = scratch(_with_bundle(bundle), "adapter")
    opened = _bundle(bundle)
    made = adapter_of(
        opened, _ARRAYS, classes=["a", "b"], class_names=["a", "b"], templates=["a {}."]
    )
    save_adapter(folder, made)
    _known["adapter"] = folder
    return folder


def _read_adapter(content: bytes, folder: Path, name: str) -> Any:
    for path in _known["adapter"].iterdir():
        if path.name != name:
            os.link(path, folder / path.name)
    (folder / name).write_bytes(content)
    found = load_adapter(folder, _bundle(_known["bundle"]))
    if found.record.is_unhashed:  # a file that calls itself old, which is read with that warning
        raise Refused("nothing tells whether it was changed")
    return [digest(found.parameters), to_json(found.record)]


def _config_seeds(bundle: Path) -> list[bytes]:
    import yaml

    from edgeladder.core.request import TrainRequest
    from edgeladder.core.run_config import RunConfig

    config = RunConfig(
        request=TrainRequest(bundle="bundle", data="data", cache="cache", run="run"),
        profile=_bundle(bundle).manifest.profile, device=None, bundle_digest="0" * 64,
        engine="stock", seed=0, steps=10, batch=4, classes=["a"], class_names=["a"],
    )  # fmt: skip
    return [yaml.safe_dump(to_json(config), sort_keys=False).encode()]


def _config(content: bytes, folder: Path) -> Any:
    (folder / "config.yaml").write_bytes(content)
    return to_json(read_config(folder / "config.yaml"))


def _adapter(name: str, form: str, file: str) -> Target:
    """One of an adapter's two files, the other as it was written."""
    return Target(
        name,
        form,
        lambda bundle: [(_adapter_folder(bundle) / file).read_bytes()],
        lambda content, folder: _read_adapter(content, folder, file),
        sealed=True,
    )


TARGETS = [
    Target("manifest", "json", _manifest_seeds, _manifest),
    Target("tar", "tar", _tar_seeds, _tar),
    Target("tokenizer", "json", _tokenizer_seeds, _tokenizer),
    Target("onnx", "onnx", _onnx_seeds, _onnx),
    Target("weights", "bytes", _weights_seeds, _weights),
    Target("tensors", "tensors", _tensor_seeds, _tensors),
    Target("selection", "tensors", _selection_seeds, _selection),
    Target("checkpoint", "tensors", _checkpoint_seeds, _checkpoint, sealed=True),
    Target("cache-index", "tensors", _index_seeds, _index, sealed=True),
    Target("cache-shard", "tensors", _shard_seeds, _shard, sealed=True),
    _adapter("adapter-record", "json", "adapter.json"),
    _adapter("adapter-weights", "tensors", "adapter.safetensors"),
    Target("config", "yaml", _config_seeds, _config),
]
