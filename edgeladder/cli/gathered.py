"""Options that several commands share, declared in the one function that needs them all.

    @gathered(fleet=open_fleet)
    def status(fleet: HostPool, job: JobId) -> Answer: ...

gives `status` the options of `open_fleet`, and calls it with what `open_fleet` made of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from edgeladder.cli.output import Answer


def gathered(
    **makers: Callable[..., Any],
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Replace each parameter that `makers` names by the parameters of its maker.

    Makers may share a parameter with each other and with the command: it is one option then, and
    the command's own wording of it holds.
    """
    wanted = {name: inspect.signature(maker, eval_str=True) for name, maker in makers.items()}

    def decorate(command: Callable[..., Answer]) -> Callable[..., Answer]:
        own = inspect.signature(command, eval_str=True).parameters
        options: dict[str, inspect.Parameter] = {}
        for name, parameter in own.items():
            found = wanted[name].parameters if name in wanted else {name: parameter}
            options.update(
                {k: p.replace(kind=p.KEYWORD_ONLY) for k, p in found.items() if k not in options}
            )
        options.update({k: own[k].replace(kind=inspect.Parameter.KEYWORD_ONLY)
                        for k in options if k in own})  # fmt: skip

        def run(**given: Any) -> Answer:
            values = {
                name: makers[name](**{k: given[k] for k in wanted[name].parameters})
                if name in wanted
                else given[name]
                for name in own
            }
            return command(**values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {name: p.annotation for name, p in options.items()}
        signature = inspect.Signature(list(options.values()), return_annotation=Answer)
        run.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it, typeshed has no such attribute
        return run

    return decorate
