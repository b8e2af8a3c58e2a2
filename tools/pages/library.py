"""Tables of the shipped devices and profiles, and of a profile's keys with their reasons."""

from __future__ import annotations

import ast
import csv
import inspect
import json
from importlib.resources import files
from pathlib import Path
from typing import get_args

from edgeladder.core import config
from edgeladder.core.prompt_kinds import Kind
from edgeladder.core.sizes import format_size
from edgeladder.core.yaml_config import library, load_device, load_profile


def devices() -> str:
    """A row a device: memory, the budget it gives, cores, accelerator."""
    rows = ["| name | what | RAM | budget | cores | accelerator |", "|---|---|---|---|---|---|"]
    for name in library("devices"):
        found = load_device(name)
        rows.append(
            f"| `{name}` | {found.summary} | {found.ram_bytes / 2**30:.3g} GiB "
            f"| {format_size(found.default_budget_bytes)} | {found.cores} "
            f"| {found.accelerator or ''} |"
        )
    return "\n".join(rows)


def profiles() -> str:
    """A row a recipe: what it is and its paper."""
    rows = ["| name | what | after |", "|---|---|---|"]
    for name in library("profiles"):
        found = load_profile(name)
        paper = " ".join(found.paper.split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {found.summary} | {paper} |")
    return "\n".join(rows)


def keys() -> str:
    """Every key of a profile: values that it takes, its default, and the reason beside it."""
    rows = ["| key | values | default | |", "|---|---|---|---|"]
    for above, kind in (
        ("ladder.taps", config.TapConfig),
        ("ladder.prompts", config.PromptConfig),
        ("ladder", config.LadderConfig),
        ("head", config.HeadConfig),
        ("loss", config.LossConfig),
        ("train", config.TrainConfig),
        ("unlabelled", config.UnlabelledConfig),
        ("condense", config.CondenseConfig),
    ):
        rows += _keys(above, kind)
    return "\n".join(rows)


def _keys(above: str, kind: type) -> list[str]:
    """The plain fields of one record, with the comments that stand beside or above them."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    found = ast.parse(source).body[0]
    assert isinstance(found, ast.ClassDef)
    rows = []
    for item in found.body:
        if not isinstance(item, ast.AnnAssign) or item.value is None:
            continue
        annotation = ast.unparse(item.annotation)
        if annotation.split(" ")[0].endswith("Config"):
            continue  # a record of its own, or the same as another one
        assert isinstance(item.target, ast.Name) and item.end_lineno is not None
        reason = _beside(lines, item.lineno - 1, item.end_lineno)
        default = _as_yaml(ast.unparse(item.value))
        cells = (f"`{above}.{item.target.id}`", _values(annotation), f"`{default}`", reason)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _beside(lines: list[str], first: int, end: int) -> str:
    """The comment at the end of a field's last line, else the lines of comment above it."""
    _, mark, after = lines[end - 1].partition("  # ")
    above: list[str] = []
    while lines[first - 1].strip().startswith("# "):
        first -= 1
        above.insert(0, lines[first].strip()[2:])
    return " ".join([*above, *([after.strip()] if mark else [])])


def _number(bound: ast.expr) -> str:
    """A bound as a number, by name where `config` has one."""
    words = ast.unparse(bound)
    return str(getattr(config, words, words))


def _as_yaml(default: str) -> str:
    """`None` -> `null`, `True` -> `true`, `'token'` -> `token`."""
    value = ast.literal_eval(default)
    return value if isinstance(value, str) else json.dumps(value)


def _values(annotation: str) -> str:
    """`Annotated[int, Ge(1), Le(64)]` -> `int, 1 to 64`; `Literal['a', 'b']` -> `a, b`."""
    found = ast.parse(annotation, mode="eval").body
    optional = isinstance(found, ast.BinOp)
    if isinstance(found, ast.BinOp):
        found = found.left
    words = ast.unparse(found)
    if isinstance(found, ast.Subscript):
        inner = found.slice.elts if isinstance(found.slice, ast.Tuple) else [found.slice]
        kind = ast.unparse(found.value)
        if kind == "Literal":
            words = ", ".join(str(ast.literal_eval(item)) for item in inner)
        elif kind == "Annotated":
            bounds = {"Ge": "from {}", "Gt": "above {}", "Le": "to {}", "Lt": "below {}"}
            told = [
                bounds[ast.unparse(item.func)].format(_number(item.args[0]))
                for item in inner[1:]
                if isinstance(item, ast.Call)
            ]
            words = " ".join([ast.unparse(inner[0]), *told])
    elif words == "Kind":
        words = ", ".join(get_args(Kind))
    return f"{words}, or none" if optional else words


_RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results" / "models.csv"
_FAMILIES = {  # a family's usual models: which towers they have
    "nano": "ships, int8: EfficientNet-Lite0",
    "ViT-B-32": "OpenAI, LAION, DataComp",
    "ViT-B-16": "OpenAI, LAION, DataComp, MetaCLIP",
    "ViT-L-14": "OpenAI, LAION, DataComp",
    "ViT-H-14": "LAION, DFN",
    "ViT-B-16-SigLIP": "SigLIP: attention pooling, sigmoid loss",
    "ViT-B-16-SigLIP2": "SigLIP 2: many languages",
    "EVA02-B-16": "EVA-02: rotary positions, SwiGLU",
    "MobileCLIP-S1": "MobileCLIP: FastViT",
    "MobileCLIP2-S0": "MobileCLIP 2: FastViT",
    "convnext_base_w": "ConvNeXt",
    "RN50": "OpenAI's ResNet: pooled by attention",
    "coca_ViT-B-32": "CoCa: attentional pooler, appended class token",
    "roberta-ViT-B-32": "LAION: RoBERTa as text tower",
    "xlm-roberta-base-ViT-B-32": "LAION: XLM-RoBERTa, many languages",
}


def models() -> str:
    """A row a family: parameters, and what `tools/bench/model_row.py` measured."""
    counted = json.loads(files("edgeladder").joinpath("host/model/parameters.json").read_text())
    measured: dict[str, dict[str, str]] = {}
    if _RESULTS.is_file():
        with _RESULTS.open(encoding="utf-8", newline="") as file:
            measured = {row["model"]: row for row in csv.DictReader(file)}
    rows = [
        "| model | make | image | text | bundle | export | smallest budget | pictures/s in it "
        "| pictures/s in 4 GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [*_FAMILIES, *(name for name in measured if name not in _FAMILIES)]:
        image, text = counted.get(name, ("", ""))
        found = measured.get(name, {})
        cells = [
            f"{found[key]} {unit}" if found.get(key) else "-"
            for key, unit in (
                ("bundle_mb", "MB"), ("export_cpu_seconds", "s"), ("smallest_budget_mb", "MB"),
            )
        ]  # fmt: skip
        for kind in ("smallest", "ample"):
            seconds = found.get(f"{kind}_cpu_seconds_per_picture")
            cells.append(f"{1 / float(seconds):.1f}" if seconds else "-")
        make = _FAMILIES.get(name, "")
        rows.append(f"| `{name}` | {make} | {image} | {text} | " + " | ".join(cells) + " |")
    return "\n".join(rows)
