"""Fuzzed: what people bring. Pictures, archives and lists of them, YAML, settings, runs."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeladder.core.manifest import PreprocessRecord
from edgeladder.core.records import to_json
from edgeladder.core.sizes import parse_size
from edgeladder.core.yaml_config import library, load_device, load_profile
from edgeladder.jobs.run_directory import read_metrics
from edgeladder.report.page import write_report
from edgeladder.runtime.pictures.class_names import parse_names
from edgeladder.runtime.pictures.dataset import Dataset, open_data, split
from edgeladder.runtime.pictures.decode import decode_square
from edgeladder.runtime.pictures.sources import UnreadableError
from tools.fuzz.targets import Target

_PREPROCESS = PreprocessRecord(size=16, mean=[0.5] * 3, std=[0.5] * 3)
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")


def _picture(format_name: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format_name, **options)
    return out.getvalue()


def _picture_seeds(bundle: Path) -> list[bytes]:
    made = [_picture(name) for name in _FORMATS if _writable(name)]
    exif = Image.Exif()
    exif[0x0112] = 6
    made += [
        _picture("JPEG", progressive=True, exif=exif.tobytes()),
        _picture("JPEG", "CMYK"),
        _picture("PNG", "P"),
        _picture("PNG", "LA"),
        _picture("TIFF", "L", compression="tiff_lzw"),
        _picture("GIF", "P"),
    ]
    return made


def _writable(name: str) -> bool:
    Image.init()
    return name in Image.SAVE


def _decode(content: bytes, folder: Path) -> Any:
    """A picture that cannot be read is skipped and named: as good as a refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about what it finds odd
        try:
            square = decode_square(content, _PREPROCESS, max_pixels=1 << 20)
        except UnreadableError as error:
            return str(error) and None
    assert square.shape == (16, 16, 3) and square.dtype == np.uint8
    return square.tobytes()


# ---- data sets


def _zip_seeds(bundle: Path) -> list[bytes]:
    picture = _picture("PNG")
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name in ("class0/a.png", "class0/b.png", "class1/a.png", "class1/b.png"):
                archive.writestr(zipfile.ZipInfo(name), picture)
            archive.writestr(zipfile.ZipInfo("classes.yaml"), "class0: shirt\nclass1: hat\n")
        made.append(out.getvalue())
    return made


def _read(dataset: Dataset) -> Any:
    found = []
    for picture in dataset.pictures:
        try:
            found.append([picture.path, picture.label, picture.split, len(picture.read())])
        except UnreadableError as error:
            found.append([picture.path, str(error)])
    sides = [[picture.path for picture in side] for side in split(dataset, 1, 0)]
    return [found, sides, dataset.class_names, dataset.templates]


def _zip(content: bytes, folder: Path) -> Any:
    (folder / "data.zip").write_bytes(content)
    found = _read(open_data(folder / "data.zip"))
    assert [path.name for path in folder.iterdir()] == ["data.zip"], "a member got out"
    return found


_CSV = b"path,label,split\na.png,dress,train\nb.png,hat,train\nb.png,hat,test\n"
_PLAIN_CSV = b'a.png,dress\n"b.png",hat\nb.png,dress\na.png,hat\n'
_JSONL = b'{"path": "a.png", "label": "dress"}\n{"path": "b.png", "label": "hat", "split": ""}\n'


def _table(content: bytes, folder: Path, suffix: str) -> Any:
    (folder / "a.png").write_bytes(b"a")
    (folder / f"list{suffix}").write_bytes(content)
    return _read(open_data(folder / f"list{suffix}"))


def _classes(content: bytes, folder: Path) -> Any:
    names, templates = parse_names(
        content.decode("utf-8", "replace"), ["longsleeve", "hat", "no"], where="classes.yaml"
    )
    return [[item.all for item in names], templates]


_CLASSES = b"""templates: ["a photo of a {}.", "the {}, a garment."]
longsleeve: long-sleeved shirt
hat: {name: sun hat, aliases: [cap, beanie]}
no: &x no
"""


# ---- configuration


def _profile(content: bytes, folder: Path) -> Any:
    (folder / "mine.yaml").write_bytes(content)
    return to_json(load_profile(str(folder / "mine.yaml")))


def _device(content: bytes, folder: Path) -> Any:
    (folder / "mine.yaml").write_bytes(content)
    return to_json(load_device(str(folder / "mine.yaml")))


def _settings(content: bytes, folder: Path) -> Any:
    """What is typed: `--set a.b=c`, one a line, and `--budget`."""
    words = content.decode("utf-8", "surrogateescape").split("\n")
    if words[0].startswith("budget="):
        return parse_size(words[0].removeprefix("budget="))
    return to_json(load_profile("default", words))


_SETTINGS = [
    b"train.batch=16\nladder.prompts.keep=0.5",
    b"train.learning_rate=1e-3\nloss.smoothing=0.1\nhead.kind=gda",
    b"budget=4GB",
    b"budget=1.5 GiB",
]


# ---- a run as the report reads it

_METRICS = b"""{"time": 1.5, "kind": "start", "budget_bytes": 192000000, "plan": {}}
{"time": 2, "kind": "limit", "phase": "train", "layer": "cgroup", "limit_bytes": 1, "confirmed": 1}
{"time": 3, "kind": "step", "step": 1, "loss": 1.25, "gradient_norm": 0.5, "learning_rate": 0.001, \
"seconds": 0.1}
{"time": 3, "kind": "memory", "phase": "train", "action": "halve", "reason": "80 %", \
"used_bytes": 9, "step": 1}
{"time": 4, "kind": "phase", "phase": "train", "measured_peak_bytes": 100, "limit_kills": 0}
{"time": 5, "kind": "evaluate", "accuracy": {"tuned": 0.5, "zero_shot": 0.25}}
"""
_RESULT = b"""{"run": "r", "engine": "stock", "steps": 1, "seed": 0,
"counts": {"train": 4, "test": 2},
"accuracy": {"zero_shot": 0.25, "tuned": 0.5, "split": "test"}, "memory": {"budget_bytes": 100,
"enforcement": "cgroup", "phases": {"train": {"planned_peak_bytes": 9, "measured_peak_bytes": 8}}},
"throughput": {"train_images_per_second": 1.0, "step_ms_median": 2.0}, "loss": 0.5,
"skipped_inputs": [{"path": "a", "reason": "b"}], "per_class": [{"class": "a", "accuracy": 1.0}]}
"""
_EVALUATION = b"""{"accuracy": 0.5, "count": 4, "zero_shot_accuracy": 0.25, "confusion": [[1, 1],
[1, 1]], "classes": ["a", "b"], "per_class": {"a": {"accuracy": 0.5, "count": 2, "zero_shot": 0.5},
"b": {"accuracy": 0.5, "count": 2, "zero_shot": 0.0}}}
"""


def _report(content: bytes, folder: Path, name: str) -> Any:
    run = folder / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(_METRICS)
    (run / name).write_bytes(content)
    list(read_metrics(run / "metrics.jsonl"))
    page = write_report(run).read_text("utf-8")
    assert "<script" not in page.lower(), "text of a record became markup"
    return len(page)


def _library(kind: Any) -> list[bytes]:
    return [path.read_bytes() for path in library(kind).values()]


TARGETS = [
    Target("picture", "bytes", _picture_seeds, _decode),
    Target("zip", "zip", _zip_seeds, _zip),
    Target("csv", "text", lambda _: [_CSV, _PLAIN_CSV], lambda c, f: _table(c, f, ".csv")),
    Target("jsonl", "jsonl", lambda _: [_JSONL], lambda c, f: _table(c, f, ".jsonl")),
    Target("classes", "yaml", lambda _: [_CLASSES], _classes),
    Target("profile", "yaml", lambda _: _library("profiles"), _profile),
    Target("device", "yaml", lambda _: _library("devices"), _device),
    Target("settings", "text", lambda _: _SETTINGS, _settings),
    Target(
        "metrics", "jsonl", lambda _: [_METRICS], lambda c, f: _report(c, f, "metrics.jsonl")
    ),
    Target("result", "json", lambda _: [_RESULT], lambda c, f: _report(c, f, "result.json")),
    Target(
        "evaluation", "json", lambda _: [_EVALUATION],
        lambda c, f: _report(c, f, "evaluation.json"),
    ),
]  # fmt: skip
