"""Damaged and crafted inputs: what a bad disk, a typing error or an attacker makes of a good file.

Two kinds of change. Of bytes: flipped bits, pieces cut, repeated or taken from another file,
numbers replaced. Of structure, for formats whose bytes are mostly refused at the first check:
values of a JSON or YAML tree, of a safetensors header, of protobuf fields, members of archives are
replaced by what breaks programs (wrong types, 400 digits, NaN, lone surrogates, deep nesting, paths
that climb). The same seed gives the same input.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import random
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import yaml

from edgeladder.core.protobuf import Fields, encode, parse, varint

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**18, 10**400, 0.5, -0.0, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "a", "0", "nan", "none", "\x00", "\ud800",
    "\x1b[2J", "é" * 300, "a" * 5000, "../../etc/passwd", "/etc/passwd", "/dev/zero", ".", "{}",
    [], [[]], [None], [0] * 300, ["a", 1, None], {}, {"": None}, {"kind": "none"}, {"a": {"b": []}},
)  # fmt: skip
_DEEP = 5000  # nesting beyond any parser's stack
_TEXTS = (
    b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 400, b"[]", b"{}", b'""', b'"\\ud800"',
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b'"', b"'", b",", b":", b"&a ", b"*a",
    b"!!python/object", b"!x ", b"---\n", b"...", b"|", b"<<: ", b"9999-99-99", b"0x", b"1:1:1",
    b"%", b"\t", b"../", b"/", b"\\", b"[" * 400, b"{" * 400, b"- " * 400,
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NUMBERS = (b"0", b"-1", b"1", b"255", b"256", b"65536", b"4294967295", b"9223372036854775807",
            b"18446744073709551616", b"1e400", b"-0.0", b"9" * 400, b"1.5", b"NaN")  # fmt: skip

Mutator = Callable[[bytes, random.Random, list[bytes]], bytes]


def mutate(content: bytes, form: str, chance: random.Random, seeds: list[bytes]) -> bytes:
    """A changed copy of a good input.

    Args:
        content: one of `seeds`.
        form: bytes, text, json, jsonl, yaml, tensors, zip, tar or onnx; most changes are of its
            structure.
        chance: decides everything.
        seeds: what pieces are taken from.
    """
    structured = _STRUCTURED.get(form)
    if structured is not None and chance.random() < 0.7:
        try:
            content = structured(content, chance, seeds)
        except (ValueError, RecursionError, yaml.YAMLError, OSError, tarfile.TarError, KeyError,
                zipfile.BadZipFile, UnicodeDecodeError, zlib.error, NotImplementedError, EOFError,
                IndexError, RuntimeError):  # fmt: skip
            pass  # an earlier finding, which has no structure any more
        else:
            if chance.random() < 0.8:
                return content
    for _ in range(1 + int(chance.expovariate(0.7))):
        content = _bytes(content, chance, seeds)
    return content


def _bytes(content: bytes, chance: random.Random, seeds: list[bytes]) -> bytes:
    """One change of bytes."""
    data = bytearray(content)
    at = chance.randrange(len(data) + 1)
    if chance.random() < 0.3:
        at = min(at, chance.randrange(512))  # headers are at the beginning
    size = min(len(data) - at, 1 << chance.randrange(10))
    what = chance.randrange(9)
    if what == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif what == 1 and at < len(data):
        data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    elif what == 2:
        del data[at:]
    elif what == 3:
        del data[at : at + size]
    elif what == 4:
        data[at:at] = data[at : at + size] * chance.choice((1, 2, 50))
    elif what == 5:
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        data[at : at + chance.choice((0, size))] = other[start : start + size]
    elif what == 6:
        data[at : at + chance.choice((0, size))] = chance.choice(_TEXTS)
    elif what == 7:
        found = _NUMBER.search(content, at) or _NUMBER.search(content)
        if found:
            data[found.start() : found.end()] = chance.choice(_NUMBERS)
    else:
        width = chance.choice((2, 4, 8))
        number = chance.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, 2**16, len(data)))
        data[at : at + width] = (number % (1 << 8 * width)).to_bytes(
            width, chance.choice(("little", "big"))
        )
    return bytes(data)


# ---- trees: JSON, YAML, headers


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = node if isinstance(node, dict) else range(len(node))
        for key in list(keys):
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])
    return found


def _tree(tree: Any, chance: random.Random) -> Any:
    """One or a few changes of a tree; the tree itself is left alone."""
    if not isinstance(tree, (dict, list)) or chance.random() < 0.02:
        return chance.choice(JUNK)
    tree = copy.deepcopy(tree)
    for _ in range(1 + int(chance.expovariate(1.5))):
        places = _places(tree)
        if not places:
            return chance.choice(JUNK)
        node, key = chance.choice(places)
        what = chance.randrange(8)
        if what == 0:
            del node[key]
        elif what == 1 and isinstance(node, dict):
            node[str(chance.choice(("", "x", "is", "\ud800", "../x", key)))] = node.pop(key)
        elif what == 2:
            other, place = chance.choice(places)
            if isinstance(other, dict) and place not in other:
                continue
            if isinstance(other, list) and place >= len(other):
                continue
            node[key] = copy.deepcopy(other[place])
        elif what == 3 and isinstance(node[key], list):
            node[key] = node[key] * chance.choice((0, 2, 3))
        elif what == 4 and isinstance(node[key], (int, float)):
            node[key] = _number(node[key], chance)
        else:
            node[key] = copy.deepcopy(chance.choice(JUNK))
    return tree


def _number(value: float, chance: random.Random) -> Any:
    return chance.choice((-value, value + 1, value - 1, str(value), 10**400, 2**40, 1e308, -1e12))


def _dumped(tree: Any, chance: random.Random) -> bytes:
    """JSON text, now and then nested deeper than a parser's stack, or with a key twice."""
    text = json.dumps(tree, ensure_ascii=True).encode()
    if chance.random() < 0.02:
        bracket = chance.choice((b"[", b'{"a":'))
        text = text.replace(b"null", bracket * _DEEP, 1) if b"null" in text else bracket * _DEEP
    return text


def _json(content: bytes, chance: random.Random, seeds: list[bytes]) -> bytes:
    return _dumped(_tree(json.loads(content), chance), chance)


def _json_lines(content: bytes, chance: random.Random, seeds: list[bytes]) -> bytes:
    lines = content.splitlines() or [b"{}"]
    place = chance.randrange(len(lines))
    lines[place] = _json(lines[place], chance, seeds)
    return b"\n".join(lines)


def _bomb(tree: Any, chance: random.Random) -> bytes:
    """Aliases of aliases: a few hundred bytes that are ten to the ninth values when written out."""
    keys = list(tree) if isinstance(tree, dict) and tree else ["a"]
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        lines.append(f"a{level}: &a{level} [{', '.join(['*a' + str(level - 1)] * 10)}]")
    lines.append(f"{chance.choice(keys)}: {chance.choice(('*a8', '[*a8]', '{aliases: *a8}'))}")
    if chance.random() < 0.5:  # all on one key, in case unknown ones are refused at once
        rows = [line.split(": ", 1)[1] for line in lines[:-1]]
        lines = [f"{chance.choice(keys)}: [{', '.join(rows)}]"]
    return "\n".join(lines).encode()


def _yaml(content: bytes, chance: random.Random, seeds: list[bytes]) -> bytes:
    tree = _yaml_tree(content)
    if chance.random() < 0.01:
        return _bomb(tree, chance)
    return _dumped(_tree(tree, chance), chance)  # JSON is YAML


@functools.lru_cache(64)  # seeds are few, and parsing them takes longer than all else
def _yaml_tree(content: bytes) -> Any:
    """The values of YAML, which changes leave alone; an error's parsing is not kept."""
    return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506


def _tensors(content: bytes, chance: random.Random, seeds: list[bytes]) -> bytes:
    """A safetensors file with another header, whose length is right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = _dumped(_tree(header, chance), chance)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


# ---- protobuf


def _onnx(content: bytes, chance: random.Random, seeds: list[bytes], depth: int = 0) -> bytes:
    fields: Fields = parse(content)
    if not fields:
        return content
    place = chance.randrange(len(fields))
    number, value = fields[place]
    if isinstance(value, bytes) and number > 0 and depth < 8 and chance.random() < 0.85:
        try:
            inner = _onnx(value, chance, seeds, depth + 1)
        except Exception:  # a string, which is no message
            inner = _bytes(value, chance, seeds)
        fields[place] = (number, inner)
    else:
        what = chance.randrange(6)
        if what == 0:
            del fields[place]
        elif what == 1:
            fields.insert(place, fields[place])
        elif what == 2:
            fields[place] = (chance.choice((1, 2, 5, 7, 8, 9, 13, 20, 2**28)), value)
        elif what == 3:
            fields[place] = (abs(number), chance.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1)))
        elif what == 4:
            fields[place] = (abs(number), chance.choice((b"", b"\xff", b"../../x", b"location")))
        else:
            nested = b""
            for _ in range(chance.choice((3, 2000))):
                nested = varint(6 << 3 | 2) + varint(len(nested)) + nested
            fields.append((number, nested))
    return b"".join(encode(number, value) for number, value in fields)


# ---- archives


_NAMES = ("../out.png", "/abs/out.png", "a/../../out.png", "", ".", "a//b.png", "C:\\x.png",
          "class0/a.png", "class0/\x00.png", "é/a.png", "a" * 300 + "/b.png", "classes.yaml",
          "manifest.json", "x/" * 200 + "a.png", "\x1b[2J/a.png", "-", "class0")  # fmt: skip


def _zip(content: bytes, chance: random.Random, seeds: list[bytes]) -> bytes:
    """The archive written anew with one strange member, or strange numbers in its directory."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.infolist()
        place = chance.randrange(len(members) + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # duplicate names are what is asked for
            for number, member in enumerate([*members, zipfile.ZipInfo("class0/added.png")]):
                data = old.read(member) if number < len(members) else b"x"
                if number == place:
                    member = zipfile.ZipInfo(chance.choice((member.filename, *_NAMES)))
                    member.compress_type = chance.choice((0, 8, 8, 12, 14))
                    member.external_attr = chance.choice((0, 0o120777 << 16, 0o40755 << 16, 0x10))
                    member.create_system = 3
                    data = chance.choice((data, b"", b"\0" * 1_000_000, b"/etc/passwd"))
                new.writestr(member, data)
    whole = bytearray(out.getvalue())
    at = whole.find(b"PK\x01\x02", chance.randrange(len(whole)))
    if at >= 0 and chance.random() < 0.6:  # a record of the central directory
        offset, width = chance.choice(
            ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4))
        )
        value = chance.choice((0, 1, 0x41, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF))
        whole[at + offset : at + offset + width] = (value % (1 << 8 * width)).to_bytes(
            width, "little"
        )
    return bytes(whole)


def _tar(content: bytes, chance: random.Random, seeds: list[bytes]) -> bytes:
    """The archive written anew with one strange member."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        members = old.getmembers()
        place = chance.randrange(len(members))
        for number, member in enumerate(members):
            stream = old.extractfile(member)
            data = stream.read() if stream else b""
            if number == place:
                member.name = chance.choice((member.name, *_NAMES)).replace("\0", "")
                member.type = chance.choice(
                    (member.type, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
                     tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE)
                )  # fmt: skip
                member.linkname = chance.choice(("", "/etc/passwd", "../x", "manifest.json"))
                member.mode = chance.choice((0, 0o4755, 0o644))
                data = chance.choice((data, b"", _json(data, chance, seeds) if data[:1] == b"{"
                                      else data[: len(data) // 2]))  # fmt: skip
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return out.getvalue()


_STRUCTURED: dict[str, Mutator] = {
    "json": _json,
    "jsonl": _json_lines,
    "yaml": _yaml,
    "tensors": _tensors,
    "onnx": _onnx,
    "zip": _zip,
    "tar": _tar,
}
