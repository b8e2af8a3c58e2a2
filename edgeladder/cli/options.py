"""Options that several commands share, each worded once, and their defaults' places."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeladder.core.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON object on stdout.")]
Csv = Annotated[bool, typer.Option("--csv", help="Rows for a spreadsheet on stdout.")]
Bundle = Annotated[
    Path, typer.Option("--bundle", help="Bundle: a folder, or one .tar of it; nano: what ships.")
]
Data = Annotated[
    Path, typer.Option("--data", help="Pictures: folder, .zip, or CSV/JSONL of path and label.")
]
Unlabelled = Annotated[
    Path | None,
    typer.Option("--unlabelled", help="Folder or .zip of pictures. [unlabelled/ in the data]"),
]
Cache = Annotated[
    Path,
    typer.Option("--cache", envvar="EDGELADDER_CACHE", help="Folder of cached activations."),
]
Run = Annotated[Path | None, typer.Option("--run", help="Run directory. [default: the newest]")]
Served = Annotated[
    Path | None, typer.Option("--run", help="Run directory. [default: pinned, else the newest]")
]
Page = Annotated[Path | None, typer.Option("--page", help="HTML page with thumbnails to write.")]
Thumbnails = Annotated[
    bool, typer.Option("--thumbnails/--no-thumbnails", help="Pictures in the page.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        envvar="EDGELADDER_DEVICE",
        help="Device profile: a name or a YAML file. [default: this machine]",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        envvar="EDGELADDER_BUDGET",
        help="Memory of all processes: 4GB, 192MB. [default: the device's]",
    ),
]
Provider = Annotated[
    str,
    typer.Option(
        "--provider",
        help="What runs the image tower: auto, cpu, cuda, tensorrt, openvino, openvino-gpu.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change one key of the profile; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed. [default: the profile's]")]
Shots = Annotated[int | None, typer.Option("--shots", min=1, help="Pictures per class. [all]")]
Profile = Annotated[
    str | None, typer.Option("--profile", help="Recipe: a name or a YAML file. [the bundle's]")
]
NoPictures = Annotated[bool, typer.Option("--no-pictures", help="A report without pictures in it.")]
Engine = Annotated[str, typer.Option("--engine", help="auto, stock or ort-training.")]

BUNDLE, DATA, CACHE, RUNS = Path("bundle"), Path("data"), Path("cache"), Path("runs")

_MAKES = {
    "bundle": "`edgeladder export --model ViT-B/16 --out {}` on a host makes a bundle (or name "
    "one with --bundle)",
    "pictures": "put them in {}/<class>/<picture>.jpg (or name a folder, .zip or CSV with --data)",
    "unlabelled pictures": "put them into {}, or leave --unlabelled out",
    "cache": "`edgeladder precompute --cache {}` makes one (or name one with --cache)",
    "run": "`edgeladder train --run {}` makes one (or name one with --run)",
}


def shipped_or(bundle: Path) -> Path:
    """The bundle that was named; nano, which ships, where none was and no `./bundle` is here."""
    from edgeladder.core.shipped import NANO_BUNDLE, named_bundle

    if bundle is BUNDLE and not BUNDLE.exists():  # the default itself: nobody named it
        return NANO_BUNDLE
    return named_bundle(bundle)


def require(**paths: Path) -> None:
    """Refuse to start while something is missing, naming all of it together.

    Args:
        paths: what it is (`bundle`, `pictures`, `run`) and where it should be.

    Raises:
        ConfigError: naming everything missing and the command that makes each.
    """
    missing = {noun: path for noun, path in paths.items() if not path.exists()}
    if missing:
        raise ConfigError(
            " and ".join(f"no {noun} at {path}" for noun, path in missing.items()),
            where="the current folder is " + str(Path.cwd()),
            remedy="; ".join(_MAKES[noun].format(path) for noun, path in missing.items()),
        )


def budget_bytes(text: str | None) -> int | None:
    """Bytes of a `--budget`.

    Raises:
        ConfigError: not a size.
    """
    if text is None:
        return None
    from edgeladder.core.sizes import parse_size

    return parse_size(text)


def newest_run(run: Path | None, *, folder: Path = RUNS) -> Path:
    """The run named, or the newest below `runs/`: a finished one, where there is one.

    Raises:
        ConfigError: there is none.
    """
    if run is not None:
        require(run=run)
        return run
    runs = [path.parent for path in folder.glob("*/adapter.json")]
    runs = runs or [path.parent for path in folder.glob("*/config.yaml")]
    if not runs:
        raise ConfigError(
            f"no run below {folder}", remedy="`edgeladder train` makes one, or name one with --run"
        )
    return max(runs, key=lambda path: path.stat().st_mtime)


def served_run(run: Path | None, *, folder: Path = RUNS) -> Path:
    """The run named, else the one that is pinned below `runs/`, else the newest.

    Raises:
        ConfigError: there is none, or the pinned one is gone.
    """
    if run is None and (folder / "pinned.json").is_file():
        from edgeladder.core.run_list import pinned_run

        run = pinned_run(folder)
    return newest_run(run, folder=folder)


def optional(**values: Any) -> dict[str, Any]:
    """The values that were given: keyword arguments that leave the callee its defaults."""
    return {name: value for name, value in values.items() if value is not None}
