"""The command line: every command, and the one place where errors become exit codes.

Nothing here or in the command files imports numpy, pydantic or onnxruntime at module level:
`edgeladder --help` stays quick, and the process that supervises a training stays small, because
it counts inside the budget.
"""

from __future__ import annotations

import copy
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from edgeladder.cli import (
    cache_command,
    config_file,
    demo_command,
    doctor_command,
    export_command,
    inference_commands,
    lazy,
    library_commands,
    models_command,
    report_commands,
    review_commands,
    run_commands,
    service_commands,
    signing_commands,
    suggest_command,
    train_commands,
    verbosity,
)
from edgeladder.cli.command import App
from edgeladder.cli.output import Answer, Output
from edgeladder.core.errors import BudgetError, ConfigError, EdgeLadderError
from edgeladder.core.failures import known_failure
from edgeladder.core.progress import NORMAL, VERBOSE

_ClickException: type = typer.BadParameter.__mro__[2]  # typer may carry its own copy of click
_EXTRAS = {  # optional package -> the extra that brings it
    "anyio": "serve",
    "asyncssh": "fleet",
    "av": "camera",
    "cryptography": "sign",
    "flwr": "flower",
    "onnx": "host",
    "onnxscript": "host",
    "open_clip": "host",
    "python_multipart": "serve",
    "starlette": "serve",
    "torch": "host",
    "transformers": "hf",
    "uvicorn": "serve",
    "watchdog": "serve",
}

app = App(
    name="edgeladder",
    help="Adapt a frozen CLIP to a place, on the device, inside a memory budget.",
    epilog="Each command has --help, and --json for exactly one JSON object on stdout.",
    cls=lazy.LazyGroup,
    add_completion=True,
    rich_markup_mode=None,  # plain help: rich would cost half of the start-up time
    pretty_exceptions_enable=False,
)
for module in (
    export_command,
    models_command,
    train_commands,
    inference_commands,
    service_commands,
    report_commands,
    run_commands,
    cache_command,
    review_commands,
    suggest_command,
    doctor_command,
    library_commands,
    signing_commands,
    demo_command,
):
    module.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    trust_key: list[str] = typer.Option(
        [],
        "--trust-key",
        metavar="KEY",
        help="Refuse what this publisher did not sign; repeatable.",
    ),
) -> None:
    """Adapt a frozen CLIP to a place, on the device, inside a memory budget."""
    if trust_key:
        from edgeladder.core.trusted_keys import parse_or_read, pin

        pin(key for item in trust_key for key in parse_or_read(item))
    if version:
        from edgeladder import __version__

        print(f"edgeladder {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: the design's error boundary.

    Args:
        arguments: as on the command line, without the program's name; None takes `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    verbosity.set_level(NORMAL)  # until the command says otherwise
    try:
        return _main(given, as_json)
    except train_commands.StepAside as aside:  # stdout is itself again
        aside.become(as_json)


def _main(given: list[str], as_json: bool) -> int:
    with Output(as_json) as output:
        try:
            command = typer.main.get_command(_narrowed(given))
            told = config_file.defaults(command, given, lambda: typer.main.get_command(app))
            answer = command.main(
                args=given, prog_name="edgeladder", standalone_mode=False, default_map=told
            )
            if isinstance(answer, Answer):
                output.answer(answer)
                return answer.exit_code
            if answer == 130:  # typer's word for Ctrl-C
                raise KeyboardInterrupt
            return answer if isinstance(answer, int) else 0
        except train_commands.StepAside:
            raise
        except BaseException as error:
            failure, code = explain(error)
            if failure is not None:
                output.failure(failure)
            return code


def _narrowed(given: list[str]) -> typer.Typer:
    """The application with the one command that is asked for, where the first word is one.

    typer builds a validator for each option of each command it is given.
    """
    commands = [item for item in app.registered_commands if [_name(item)] == given[:1]]
    if not commands:
        return app
    narrow = copy.copy(app)
    narrow.registered_commands, narrow.registered_groups = commands, []
    return narrow


def _name(command: Any) -> str:
    return str(command.name or command.callback.__name__.replace("_", "-"))


def explain(error: BaseException) -> tuple[EdgeLadderError | None, int]:
    """What to tell the user about an exception, and the exit code; None: nothing to tell."""
    if os.environ.get("EDGELADDER_TRACEBACK") == "1" or verbosity.level() >= VERBOSE:
        traceback.print_exception(error)
    if isinstance(error, EdgeLadderError):
        return error, error.exit_code
    if isinstance(error, SystemExit):
        return None, error.code if isinstance(error.code, int) else 1
    if isinstance(error, typer.Exit):
        return None, error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return EdgeLadderError("interrupted", remedy="run the command again to go on"), 130
    if type(error).__name__ == "NoArgsIsHelpError":  # a bare group, such as `edgeladder fleet`
        print(error)
        return None, 0
    if isinstance(error, _ClickException):
        return _usage(error), ConfigError.exit_code
    if isinstance(error, BrokenPipeError):
        return None, 1
    known = known_failure(error)
    if known is not None:
        return known, known.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRAS:
        package = str(error.name).split(".")[0]
        lacking = ConfigError(
            f"this command needs {package}, which is not installed here",
            where=sys.prefix,
            remedy=f"pip install 'edgeladder[{_EXTRAS[package]}]'",
        )
        return lacking, lacking.exit_code
    if isinstance(error, MemoryError):
        short = BudgetError(
            "out of memory",
            remedy="give a larger --budget, or `edgeladder plan` to see what fits",
        )
        return short, short.exit_code
    return _unexpected(error), EdgeLadderError.exit_code


def _usage(error: Any) -> ConfigError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "edgeladder"
    return ConfigError(error.format_message(), where=command, remedy=f"{command} --help")


def _unexpected(error: BaseException) -> EdgeLadderError:
    kind = type(error).__name__
    return EdgeLadderError(
        f"unexpected {kind}: {error}" if str(error) else f"unexpected {kind}",
        remedy="run it again with -v (or EDGELADDER_TRACEBACK=1 in the environment) to see where "
        "it happened, and report that",
    )


def run() -> None:
    """The console script's entry point."""
    train_commands.may_step_aside = True
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `edgeladder devices | head -1` is no error of anyone's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
