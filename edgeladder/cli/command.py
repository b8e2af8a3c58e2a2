"""What every command has: `-q` and `-v`, options in groups, and an example in its `--help`.

Commands are registered on an `App` in place of typer's own class and need nothing else for it. An
example stands in `cli.examples`, or at the end of a command's docstring after "Example: ".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from edgeladder.cli import verbosity
from edgeladder.cli.examples import EXAMPLES
from edgeladder.core.progress import NORMAL, QUIET, VERBOSE

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="What is done about memory; the traceback of an unexpected error."
    ),
]

# in the order of the help; an option that stands in none is under "Options"
GROUPS = {
    "Data": (
        "--adapter --bundle --cache --calibration --classes --data --images --inventory --run "
        "--shots --split --start"
    ),
    "Budget and device": "--budget --device --limit --parallel --provider",
    "Model and training": (
        "--dtype --engine --keep --model --pretrained --profile --resume --seed --set --tokenizer "
        "--views"
    ),
    "Output": (
        "--csv --include-resize --json --keep-checkpoints --no-pictures --out --output --page "
        "--portable --quiet --tensorboard --top --verbose"
    ),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
_OTHER = "Options"
_EXAMPLE = "Example: "  # in a docstring


class Command(TyperCommand):
    """A command whose help shows its options in groups and ends in an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options by group."""
        found: dict[str, list[tuple[str, str]]] = {
            name: [] for name in ("Arguments", *GROUPS, _OTHER)
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            names = [name for name in parameter.opts if name in _GROUP_OF]
            is_argument = parameter.param_type_name == "argument"
            group = "Arguments" if is_argument else _GROUP_OF[names[0]] if names else _OTHER
            found[group].append(record)
        for name, records in found.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example."""
        examples = self.examples(" ".join(ctx.command_path.split()[1:]))
        if examples:
            with formatter.section("Example"):
                for line in examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    def examples(self, words: str) -> list[str]:
        """Command lines that show the command of these words at work."""
        text = EXAMPLES.get(words) or self.epilog or ""
        return [" ".join(line.split()) for line in text.split("; ") if line]


class App(typer.Typer):
    """A typer application whose commands are `Command`s, quiet or verbose as they are asked."""

    def command(self, name: str | None = None, **more: Any) -> Callable[..., Any]:
        """Register a command; see `typer.Typer.command`."""
        more.setdefault("cls", Command)
        register = super().command

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            text, _, example = (function.__doc__ or "").partition(_EXAMPLE)
            told = _with_verbosity(function)
            told.__doc__ = text
            register(name, **{"epilog": example.strip(), **more})(told)
            return function

        return decorate


def _with_verbosity(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the two options added, which it is not told of."""
    signature = inspect.signature(function, eval_str=True)

    def run(quiet: bool, verbose: bool, **given: Any) -> Any:
        verbosity.set_level(QUIET if quiet else VERBOSE if verbose else NORMAL)
        return function(**given)

    kind, more = inspect.Parameter.KEYWORD_ONLY, {"quiet": Quiet, "verbose": Verbose}
    parameters = [item.replace(kind=kind) for item in signature.parameters.values()]
    parameters += [
        inspect.Parameter(name, kind, default=False, annotation=annotation)
        for name, annotation in more.items()
    ]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect reads it, typeshed has no such attribute
    return run
