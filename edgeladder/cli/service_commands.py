"""`edgeladder serve`: a trained run that stays on duty."""

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

if TYPE_CHECKING:
    from edgeladder.serve.settings import Address

_TOKEN = "EDGELADDER_TOKEN"  # a command line is seen by all who may list processes


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(serve)


def serve(
    run: options.Run = None,
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
    as_json: options.Json = False,
) -> Answer:
    """Answer pictures over HTTP until told to stop: a page for phones, JSON for programs."""
    from edgeladder.core.inference import InferenceRequest
    from edgeladder.core.records import to_json
    from edgeladder.core.sizes import parse_size
    from edgeladder.serve import server
    from edgeladder.serve.settings import Address, Limits

    request = InferenceRequest(
        command="serve",
        run=str(options.newest_run(run)),
        bundle=None if bundle is None else str(bundle),
        classes=classes,
        device=device,
        budget_bytes=options.budget_bytes(budget),
    )
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


def _told(values: dict[str, Any]) -> str:
    requests = sum(values["requests"].values())
    return f"{values['answered']} pictures answered in {requests} requests"
