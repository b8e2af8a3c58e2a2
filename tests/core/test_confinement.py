"""What a bundle may name, hold and reach: hostile ones, each refused with exit code 5."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeladder.core.archive import unpack
from edgeladder.core.bundle import Bundle
from edgeladder.core.confinement import is_confined
from edgeladder.core.errors import IntegrityError
from edgeladder.core.onnx_check import check_model
from edgeladder.core.onnx_graph import Graph, one_node_model
from edgeladder.core.operators import ALLOWED
from edgeladder.core.protobuf import FLOAT, encode, external_data, message, read_tensor

STEM = "backbone/image/00_stem.onnx"
Change = Callable[[Path, dict[str, Any]], None]


def listed(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def refused(folder: Path, change: Change, match: str, *, verify: bool = True) -> None:
    """Change a bundle as somebody would who can write all of it, hashes too."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=match):
        Bundle.open(folder, verify=verify)


def no_files(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["files"] = {}


def unlisted_tokenizer(folder: Path, manifest: dict[str, Any]) -> None:
    del manifest["files"]["tokenizer/tokenizer.json"]


def climbing(folder: Path, manifest: dict[str, Any]) -> None:
    (folder.parent / "secret").write_bytes(b"words")
    manifest["tokenizer"]["files"] = ["../secret"]
    manifest["files"]["../secret"] = listed(folder, "../secret")


def absolute(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["ladder"]["initial"] = "/etc/hostname"
    manifest["files"]["/etc/hostname"] = listed(folder, "/etc/hostname")


def linked_file(folder: Path, manifest: dict[str, Any]) -> None:
    kept = folder.parent / "elsewhere"
    os.replace(folder / STEM, kept)
    (folder / STEM).symlink_to(kept)


def linked_folder(folder: Path, manifest: dict[str, Any]) -> None:
    os.replace(folder / "tokenizer", folder.parent / "elsewhere")
    (folder / "tokenizer").symlink_to(folder.parent / "elsewhere")


def linked_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    os.replace(folder / "manifest.json", folder.parent / "elsewhere")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere")


def pipe(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer/tokenizer.json")
    manifest["files"]["tokenizer/tokenizer.json"]["size"] = 0


def library(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "ladder/custom_ops.so").write_bytes(b"\x7fELF")
    manifest["files"]["ladder/custom_ops.so"] = listed(folder, "ladder/custom_ops.so")


def no_hash(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["files"][STEM]["sha256"] = ""


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (no_files, "does not list it under `files`"),
        (unlisted_tokenizer, "does not list it under `files`"),
        (climbing, "leads out of the bundle"),
        (absolute, "leads out of the bundle"),
        (linked_file, "is a link"),
        (linked_folder, "is a link"),
        (linked_manifest, "is a link"),
        (pipe, "no plain file"),
        (library, "is code"),
        (no_hash, "not what the manifest says"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_files_are_listed_inside_and_plain(
    bundle_copy: Path, change: Change, match: str, verify: bool
) -> None:
    refused(bundle_copy, change, match, verify=verify)


def test_names_as_text() -> None:
    for name in ("a", "a/b.onnx", "tokenizer/tokenizer.json", "ü/日本"):
        assert is_confined(name)
    for name in (
        "",
        "/a",
        "../a",
        "a/../b",
        "a//b",
        "./a",
        "a/",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 2000,
    ):
        assert not is_confined(name)


def model(node: bytes = b"", tensor: bytes = b"", more: bytes = b"") -> bytes:
    """A ModelProto with one node or one constant."""
    graph = (encode(1, node) if node else b"") + (encode(5, tensor) if tensor else b"")
    return message([(1, 8), (8, message([(2, 17)])), (7, graph)]) + more


def node(operator: str, domain: str = "", **attribute: bytes) -> bytes:
    fields: list[tuple[int, Any]] = [(1, "x"), (2, "y"), (4, operator), (7, domain)]
    return message([*fields, *((5, value) for value in attribute.values())])


def outside(location: str, **more: str) -> bytes:
    entries = {"location": location, **more}
    pairs = [(13, message([(1, key), (2, value)])) for key, value in entries.items()]
    return message([(1, 4), (2, FLOAT), (8, "w"), *pairs, (14, 1)])


NESTED = model(
    node("Relu", a=message([(1, "g"), (6, encode(1, node("ATen", "org.pytorch.aten")))]))
)
FUNCTION = encode(25, message([(1, "f"), (10, "ours"), (7, node("PythonOp", "com.microsoft"))]))
REPLACES = encode(25, message([(1, "Relu"), (7, node("Add"))]))
CONSTANT = node("Constant", value=message([(1, "value"), (5, outside("../../../etc/hostname"))]))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (model(node("PythonOp", "com.microsoft")), "com.microsoft::PythonOp is not allowed"),
        (model(node("EPContext", "com.microsoft")), "EPContext is not allowed"),
        (model(node("MyOp", "custom.library")), "custom.library::MyOp is not allowed"),
        (model(node("Loop")), "ai.onnx::Loop is not allowed"),
        (model(node("Relu") + encode(4, "Loop")), "two operators"),
        (NESTED, "org.pytorch.aten::ATen is not allowed"),
        (model(node("f", "ours"), more=FUNCTION), "PythonOp is not allowed"),
        (model(node("Relu"), more=REPLACES), "takes the place"),
        (model(CONSTANT), "leads out of the bundle"),
        (model(tensor=outside("/etc/hostname")), "leads out of the bundle"),
        (model(tensor=outside("../secret")), "leads out of the bundle"),
        (model(tensor=outside("*/_ORT_MEM_ADDR_/*", offset="4096")), "lacks"),
        (model(tensor=outside("link")), "is a link"),
        (model(tensor=outside("w", offset="-4")), "external data at '-4'"),
        (model(tensor=outside("w", offset="9" * 400)), "external data at"),
        (model(tensor=outside("w", offset="8", length="16")), "in a file of 16"),
        (model(tensor=outside("w", offset="99")), "in a file of 16"),
        (model(tensor=message([(2, FLOAT), (14, 1)])), "leads out of the bundle"),
        (
            model(tensor=outside("w") + encode(13, message([(1, "location"), (2, "x")]))),
            "two entries",
        ),
        (model(node("Relu"), more=encode(20, b"")), "training_info"),
        (b"", "not an ONNX file"),
        (b"graph", "not an ONNX file"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not an ONNX file"),
        (model(node("Relu"))[:-3], "not an ONNX file"),
    ],
)
def test_graphs_reach_nothing_else(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "w").write_bytes(bytes(16))
    (tmp_path / "link").symlink_to(tmp_path / "w")
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=match.replace("(", r"\(")) as caught:
        check_model(tmp_path, "m.onnx")
    assert caught.value.where and caught.value.remedy


def test_graphs_nested_deeply_are_refused(tmp_path: Path) -> None:
    inner = node("Relu")
    for _ in range(3000):
        inner = node("Relu", a=message([(1, "g"), (6, encode(1, inner))]))
    (tmp_path / "m.onnx").write_bytes(model(inner))
    with pytest.raises(IntegrityError, match="nested too deeply"):
        check_model(tmp_path, "m.onnx")


def test_what_lies_beside_is_named_and_must_be_listed(tmp_path: Path, bundle_copy: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w").write_bytes(bytes(16))
    (tmp_path / "a" / "m.onnx").write_bytes(model(tensor=outside("w", length="16")))
    assert check_model(tmp_path, "a/m.onnx") == {"a/w"}
    (tmp_path / "a" / "n.onnx").write_bytes(one_node_model("Relu", FLOAT, FLOAT))
    assert check_model(tmp_path, "a/n.onnx") == set()

    def unlist(folder: Path, manifest: dict[str, Any]) -> None:
        del manifest["files"]["backbone/image/00_stem.weights"]

    refused(bundle_copy, unlist, "does not list it under `files`")


def test_deploy_reads_external_data_inside_only(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    with pytest.raises(IntegrityError, match="leads out"):
        read_tensor(outside("../secret"), tmp_path / "model")
    (tmp_path / "model" / "m.onnx").write_bytes(model(tensor=outside("../secret")))
    with pytest.raises(IntegrityError, match="leads out"):
        Graph().join(tmp_path / "model" / "m.onnx", "a/", {})
    (tmp_path / "model" / "w").write_bytes(bytes(16))
    pair = [message([(1, "location"), (2, "w")])]
    assert external_data(pair, tmp_path / "model").size == 16


def test_the_shipped_and_the_exported_bundle_are_allowed(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    assert len(bundle.manifest.model_names()) > 20
    assert len(ALLOWED["ai.onnx"]) > 60 and "Loop" not in ALLOWED["ai.onnx"]


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    import io

    with tarfile.open(path, "w") as tar:
        for entry, content in members:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def entry(name: str, mode: int = 0o644, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.mode, found.type = mode, kind
    found.uid = found.gid = 1234
    return found


def test_archives_lose_setuid_owners_and_tricks(tmp_path: Path) -> None:
    manifest = b'{"schema_version": 1}'
    good = tar_of(
        tmp_path / "a.tar",
        (entry(".", 0o4755, tarfile.DIRTYPE), b""),
        (entry("./manifest.json", 0o4777), manifest),
        (entry("tool", 0o6755), b"#!/bin/sh"),
    )
    folder = unpack(good)
    for path in folder.iterdir():
        status = path.stat()
        assert not status.st_mode & 0o7111 and (status.st_uid, status.st_gid) != (1234, 1234)
    for name, members in {
        "twice": [entry("manifest.json"), entry("a"), entry("./a")],
        "below": [entry("manifest.json"), entry("a"), entry("a/b")],
        "above": [entry("manifest.json"), entry("a/b"), entry("a")],
        "device": [entry("manifest.json"), entry("null", kind=tarfile.CHRTYPE)],
        "hard": [entry("manifest.json"), entry("hard", kind=tarfile.LNKTYPE)],
        "name": [entry("manifest.json"), entry("a\nb")],
    }.items():
        with pytest.raises(IntegrityError):
            unpack(tar_of(tmp_path / f"{name}.tar", *((item, manifest) for item in members)))
    with tarfile.open(tmp_path / "z.tar", "w:gz") as packed:
        packed.add(folder / "manifest.json", "manifest.json")
    with pytest.raises(IntegrityError, match="compressed"):
        unpack(tmp_path / "z.tar")
