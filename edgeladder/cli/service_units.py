"""systemd units of `serve` and `watch`: the command as it was given, every path whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core.errors import ConfigError
from edgeladder.serve.unit import Unit

if TYPE_CHECKING:
    from edgeladder.core.inference import InferenceRequest
    from edgeladder.serve.settings import Address, Limits
    from edgeladder.serve.watch import WatchRequest


def serve_unit(
    request: InferenceRequest, address: Address, limits: Limits, token_file: Path | None
) -> Unit:
    """Raises ConfigError where no budget is given, which the unit is to hold it to."""
    words = ["serve", *_words(request), "--host", address.host, "--port", str(address.port)]
    words += ["--max-body", str(limits.body_bytes), "--waiting", str(limits.waiting)]
    for option, path in (("--certificate", address.certificate), ("--key", address.key)):
        words += [] if path is None else [option, os.path.abspath(path)]
    words += [word for item in address.names for word in ("--name", item)]
    writes = []
    if token_file is not None:
        words += ["--token-file", os.path.abspath(token_file)]
        writes = [Path(os.path.abspath(token_file)).parent]
    about = "answers pictures over HTTP"
    return _unit(about, words, request, writes, network=True)


def watch_unit(request: InferenceRequest, asked: WatchRequest) -> Unit:
    """Raises ConfigError where no budget is given, which the unit is to hold it to."""
    folder, places = os.path.abspath(asked.folder), asked.places
    paths = {
        "--out": asked.out,
        "--sort-into": places.sort_into,
        "--ask": places.ask,
        "--set-aside": places.set_aside,
    }
    given = {option: os.path.abspath(path) for option, path in paths.items() if path}
    words = ["watch", folder, *_words(request), "--settle", f"{asked.settle_seconds:g}"]
    words += ["--top", str(request.top), *(word for pair in given.items() for word in pair)]
    words += ["--copy"] if places.copy else []
    words += [] if asked.poll_seconds is None else ["--poll", f"{asked.poll_seconds:g}"]
    if asked.source is not None:
        words += ["--source", asked.source, "--every", f"{asked.every_seconds:g}"]
    words += ["--keep"] if asked.keep else []
    writes = [Path(folder), Path(given.pop("--out")).parent, *map(Path, given.values())]
    about = f"labels pictures that arrive in {folder}"
    return _unit(about, words, request, writes, camera=asked.source)


def _words(request: InferenceRequest) -> list[str]:
    """The options that say which run within what, by whole paths."""
    words = ["--run", os.path.abspath(request.run), "--budget", str(request.budget_bytes)]
    words += [] if request.bundle is None else ["--bundle", os.path.abspath(request.bundle)]
    words += [] if request.classes is None else ["--classes", request.classes]
    words += [] if request.provider == "auto" else ["--provider", request.provider]
    return words + ([] if request.device is None else ["--device", request.device])


def _unit(
    about: str,
    words: list[str],
    request: InferenceRequest,
    writes: list[Path],
    *,
    network: bool = False,
    camera: str | None = None,
) -> Unit:
    if request.budget_bytes is None:
        raise ConfigError("a unit needs a budget", remedy="add --budget, such as 400MB")
    return Unit(
        about=f"EdgeLadder {about}",
        words=words,
        budget_bytes=request.budget_bytes,
        writes=list(dict.fromkeys(writes)),
        reads=[Path(os.path.abspath(request.run))],
        network=network or (camera is not None and "://" in camera),
        devices=camera is not None and camera.startswith("/dev/"),
    )
