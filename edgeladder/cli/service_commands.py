"""`edgeladder serve` and `watch`: a trained run that stays on duty."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeladder.cli import options
from edgeladder.cli.inference_commands import Classes, RunBundle
from edgeladder.cli.output import Answer
from edgeladder.core.errors import ConfigError
from edgeladder.core.printable import one_line
from edgeladder.core.provider import check_provider

if TYPE_CHECKING:
    from edgeladder.core.inference import InferenceRequest
    from edgeladder.serve.settings import Address

PrintUnit = Annotated[
    bool, typer.Option("--print-unit", help="Print a systemd unit of this command and end.")
]
_TOKEN = "EDGELADDER_TOKEN"  # a command line is seen by all who may list processes


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (serve, watch):
        app.command()(command)


def serve(
    run: options.Served = None,
    bundle: RunBundle = None,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; 0.0.0.0: all. Others need a token."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")
    ] = 8765,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="A name it may be called by, beside addresses; repeatable."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="File with the token, made if missing. [a fresh one each start]"
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="PEM file: HTTPS.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="PEM file of its private key.")] = None,
    max_body: Annotated[
        str, typer.Option("--max-body", help="Largest request: a size such as 20MB.")
    ] = "20MB",
    waiting: Annotated[
        int, typer.Option("--waiting", min=1, max=1000, help="Pictures that may wait.")
    ] = 8,
    classes: Classes = None,
    device: options.Device = None,
    budget: options.Budget = None,
    provider: options.Provider = "auto",
    print_unit: PrintUnit = False,
    as_json: options.Json = False,
) -> Answer:
    """Answer pictures over HTTP until told to stop: a page for phones, JSON for programs."""
    from edgeladder.core.records import to_json
    from edgeladder.core.sizes import parse_size
    from edgeladder.serve import server
    from edgeladder.serve.settings import Address, Limits

    request = _request(run, bundle, classes, device, budget, provider=check_provider(provider))
    if print_unit:
        words = [*_words(request), "--host", host, "--port", str(port), "--max-body", max_body]
        words += ["--waiting", str(waiting)]
        for option, path in (("--certificate", certificate), ("--key", key)):
            words += [] if path is None else [option, os.path.abspath(path)]
        words += [word for item in name or () for word in ("--name", item)]
        writes = [] if token_file is None else [Path(os.path.abspath(token_file)).parent]
        words += [] if token_file is None else ["--token-file", os.path.abspath(token_file)]
        return _unit("answers pictures over HTTP", ["serve", *words], request, writes, network=True)
    address = Address(
        host=host,
        port=port,
        names=tuple(name or ()),
        certificate=None if certificate is None else str(certificate),
        key=None if key is None else str(key),
    )
    limits = Limits(body_bytes=parse_size(max_body), waiting=waiting)
    served = server.serve(request, address, limits, _token(address, token_file), _say)
    values = to_json(served)
    return Answer(values, lambda: _told(values))


def watch(
    folder: Annotated[Path, typer.Argument(help="Where pictures arrive; folders in it too.")],
    out: Annotated[
        Path, typer.Option("--out", help="Answers: a .csv or .jsonl file that lines are added to.")
    ] = Path("answers.csv"),
    run: options.Served = None,
    bundle: RunBundle = None,
    sort_into: Annotated[
        Path | None, typer.Option("--sort-into", help="Move pictures into class folders below it.")
    ] = None,
    ask: Annotated[
        Path | None,
        typer.Option("--ask", help="Move pictures of no known class here, for a person."),
    ] = None,
    set_aside: Annotated[
        Path | None, typer.Option("--set-aside", help="Move what cannot be read here.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy instead of moving.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels a picture, in .jsonl.")] = 1,
    poll: Annotated[
        float | None,
        typer.Option("--poll", min=0.1, help="Seconds between looks, where the kernel is silent."),
    ] = None,
    settle: Annotated[
        float, typer.Option("--settle", min=0, help="Seconds a file must not have changed.")
    ] = 1.0,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            envvar="EDGELADDER_SOURCE",
            help="A camera: /dev/video0, rtsp://.., or a video; its frames arrive in the folder.",
        ),
    ] = None,
    every: Annotated[
        float, typer.Option("--every", min=0.01, help="Seconds between two frames.")
    ] = 1.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep frames that go nowhere else.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="End when all that is there is labelled.")
    ] = False,
    classes: Classes = None,
    device: options.Device = None,
    budget: options.Budget = None,
    provider: options.Provider = "auto",
    print_unit: PrintUnit = False,
    as_json: options.Json = False,
) -> Answer:
    """Label pictures as they arrive in a folder, until told to stop."""
    from edgeladder.core.records import to_json
    from edgeladder.serve.placing import Places
    from edgeladder.serve.watch import WatchRequest
    from edgeladder.serve.watch import watch as run_watch

    request = _request(
        run, bundle, classes, device, budget, top=top, provider=check_provider(provider)
    )
    if print_unit:
        paths = {"--out": out, "--sort-into": sort_into, "--ask": ask, "--set-aside": set_aside}
        given = {option: os.path.abspath(path) for option, path in paths.items() if path}
        words = [os.path.abspath(folder), *_words(request), "--settle", f"{settle:g}"]
        words += ["--top", str(top), *(word for pair in given.items() for word in pair)]
        words += ["--copy"] if copy else []
        words += [] if poll is None else ["--poll", f"{poll:g}"]
        words += [] if source is None else ["--source", source, "--every", f"{every:g}"]
        words += ["--keep"] if keep else []
        writes = [Path(os.path.abspath(folder)), Path(given.pop("--out")).parent]
        writes += [Path(path) for path in given.values()]
        about = f"labels pictures that arrive in {os.path.abspath(folder)}"
        return _unit(about, ["watch", *words], request, writes, camera=source)
    asked = WatchRequest(
        folder=folder,
        out=out,
        places=Places(sort_into=sort_into, ask=ask, set_aside=set_aside, copy=copy),
        poll_seconds=poll,
        settle_seconds=settle,
        once=once,
        source=source,
        every_seconds=every,
        keep=keep,
    )
    values = to_json(run_watch(asked, request, _say))
    return Answer(values, lambda: _watched(values))


def _request(
    run: Path | None,
    bundle: Path | None,
    classes: str | None,
    device: str | None,
    budget: str | None,
    **more: Any,
) -> InferenceRequest:
    from edgeladder.core.inference import InferenceRequest

    return InferenceRequest(
        command="serve",
        run=str(options.served_run(run)),
        bundle=None if bundle is None else str(bundle),
        classes=classes,
        device=device,
        budget_bytes=options.budget_bytes(budget),
        **more,
    )


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
) -> Answer:
    """Raises ConfigError where no budget is given, which the unit is to hold it to."""
    from edgeladder.serve.unit import Unit

    if request.budget_bytes is None:
        raise ConfigError("a unit needs a budget", remedy="add --budget, such as 400MB")
    unit = Unit(
        about=f"EdgeLadder {about}",
        words=words,
        budget_bytes=request.budget_bytes,
        writes=list(dict.fromkeys(writes)),
        reads=[Path(os.path.abspath(request.run))],
        network=network or (camera is not None and "://" in camera),
        devices=camera is not None and camera.startswith("/dev/"),
    )
    text = unit.text()
    return Answer({"unit": text}, text.rstrip("\n"))


def _token(address: Address, file: Path | None) -> str | None:
    """What requests must bring; None on loopback where nobody asked for one.

    Raises:
        ConfigError: what was given is no token.
    """
    from edgeladder.serve.doors import is_loopback
    from edgeladder.serve.token import checked, new_token, token_from

    given = os.environ.pop(_TOKEN, None)  # no worker needs it
    if file is not None and given is not None:
        raise ConfigError(f"both --token-file and {_TOKEN} are given", remedy="give one of them")
    if file is not None:
        return token_from(file)
    if given is not None:
        return checked(given, f"the environment's {_TOKEN}")
    if is_loopback(address.host):
        return None
    token = new_token()
    _say(f"token: {token}")
    _say(f"on a phone, open the address below with #{token} behind it")
    return token


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def _watched(values: dict[str, Any]) -> str:
    return (
        f"{values['pictures']} pictures labelled, {values['unreadable']} of them unreadable, "
        f"{values['unknown']} of no known class"
    )


def _told(values: dict[str, Any]) -> str:
    requests = sum(values["requests"].values())
    return f"{values['answered']} pictures answered in {requests} requests"
