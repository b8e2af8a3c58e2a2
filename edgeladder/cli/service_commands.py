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
    from edgeladder.serve.unit import Unit

PrintUnit = Annotated[
    bool, typer.Option("--print-unit", help="Print a systemd unit of this command and end.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File with the token, made if missing. [a fresh one each start]"
    ),
]
SortInto = Annotated[
    Path | None, typer.Option("--sort-into", help="Move pictures into class folders below it.")
]
Ask = Annotated[
    Path | None, typer.Option("--ask", help="Move pictures of no known class here, for a person.")
]
SetAside = Annotated[
    Path | None, typer.Option("--set-aside", help="Move what cannot be read here.")
]
Poll = Annotated[
    float | None,
    typer.Option("--poll", min=0.1, help="Seconds between looks, where the kernel is silent."),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        envvar="EDGELADDER_SOURCE",
        help="A camera: /dev/video0, rtsp://.., or a video; its frames arrive in the folder.",
    ),
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
    token_file: TokenFile = None,
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
    from edgeladder.cli.service_units import serve_unit
    from edgeladder.core.records import to_json
    from edgeladder.core.sizes import parse_size
    from edgeladder.serve import server
    from edgeladder.serve.settings import Address, Limits

    request = _request(run, bundle, classes, device, budget, provider=check_provider(provider))
    address = Address(
        host=host,
        port=port,
        names=tuple(name or ()),
        certificate=None if certificate is None else str(certificate),
        key=None if key is None else str(key),
    )
    limits = Limits(body_bytes=parse_size(max_body), waiting=waiting)
    if print_unit:
        return _printed(serve_unit(request, address, limits, token_file))
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
    sort_into: SortInto = None,
    ask: Ask = None,
    set_aside: SetAside = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy instead of moving.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels a picture, in .jsonl.")] = 1,
    poll: Poll = None,
    settle: Annotated[
        float, typer.Option("--settle", min=0, help="Seconds a file must not have changed.")
    ] = 1.0,
    source: Source = None,
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
    from edgeladder.cli.service_units import watch_unit
    from edgeladder.core.records import to_json
    from edgeladder.serve.placing import Places
    from edgeladder.serve.watch import WatchRequest
    from edgeladder.serve.watch import watch as run_watch

    request = _request(
        run, bundle, classes, device, budget, top=top, provider=check_provider(provider)
    )
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
    if print_unit:
        return _printed(watch_unit(request, asked))
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


def _printed(unit: Unit) -> Answer:
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
