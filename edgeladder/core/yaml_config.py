"""YAML that people write, and `a.b=c` settings: validated with all errors at once.

PyYAML reads `1e-5` as a string and `no` as False: the typed records of `config` coerce what
`yaml_text` yields, and nobody reads what people write without them. Pydantic costs a process 20 MB,
so only commands and the plan worker import this.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from edgeladder.core.config import DeviceProfile, Profile
from edgeladder.core.errors import ConfigError
from edgeladder.core.old_words import modern_profile, modern_setting
from edgeladder.core.records import to_json
from edgeladder.core.sizes import parse_size
from edgeladder.core.spelling import meant, nearest
from edgeladder.core.yaml_text import parse_yaml, read_yaml


class StrictModel(BaseModel):
    """A pydantic model that refuses unknown keys, for YAML that is read nowhere else."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


Model = TypeVar("Model")


@functools.cache
def _adapter(model: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def validate(model: type[Model], values: Any, *, where: str) -> Model:
    """Build a record of `config`, or a pydantic model, from plain values.

    Raises:
        ConfigError: every error at once as `message @ path`, and the nearest key for each unknown
            one.
    """
    try:
        found: Model = _adapter(cast(Any, model)).validate_python(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            path = ".".join(str(part) for part in item["loc"]) or "(top)"
            if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                lines.append(f"unknown key @ {path}{_hint(model, item['loc'])}")
            else:
                lines.append(f"{item['msg']} @ {path}")
        raise ConfigError("; ".join(lines), where=where, remedy="correct the keys named") from None
    return found


def _hint(model: type[Any], path: tuple[Any, ...]) -> str:
    """What an unknown key may stand for: another word for one of the record's, or a near one."""
    words = meant(".".join(str(part) for part in path), _dotted(model))
    return _or(words or [nearest(str(path[-1]), _keys_at(model, path[:-1]))])


def _or(guesses: Sequence[str | None]) -> str:
    """`, did you mean 'a' or 'b'?`; nothing where there is no guess."""
    known = [repr(guess) for guess in guesses if guess]
    return f", did you mean {' or '.join(known)}?" if known else ""


def _dotted(model: type[Any], above: str = "") -> list[str]:
    """Every value's key in a record of records, as `--set` writes it."""
    found: list[str] = []
    hints = _hints(model)
    for key in _keys_at(model, ()):
        annotation = hints[key]
        kinds = [annotation, *get_args(annotation)]
        inner = next((kind for kind in kinds if isinstance(kind, type) and _is_model(kind)), None)
        found += [above + key] if inner is None else _dotted(inner, f"{above}{key}.")
    return found


def _keys_at(model: type[Any], path: tuple[Any, ...]) -> list[str]:
    """Keys of the model at a path; none where a list or mapping lies there."""
    for part in path:
        annotation = _hints(model).get(str(part))
        candidates = [annotation, *get_args(annotation)]
        models = [c for c in candidates if isinstance(c, type) and _is_model(c)]
        if not models:
            return []
        model = models[0]
    return (
        list(_hints(model))
        if not dataclasses.is_dataclass(model)
        else [item.name for item in dataclasses.fields(model)]
    )


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints(model: type[Any]) -> dict[str, Any]:
    """A record's annotations: typing compiles each of them anew whenever it is asked."""
    if model not in _HINTS:
        _HINTS[model] = get_type_hints(model)
    return _HINTS[model]


def _is_model(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)


def library(kind: Literal["devices", "profiles"]) -> dict[str, Path]:
    """Names and files of the shipped YAML library `devices` or `profiles`."""
    packaged = Path(str(resources.files("edgeladder"))) / "_library" / kind
    folder = packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _load(
    kind: Literal["devices", "profiles"],
    model: type[Model],
    name: str,
    prepare: Callable[[Any], Any],
) -> Model:
    known = library(kind)
    path = known.get(name)
    if path is None and name.endswith((".yaml", ".yml")):
        path = Path(name)
    if path is None:
        guess = nearest(name, known)
        hint = f"did you mean {guess!r}? " if guess else ""
        noun = kind[:-1]
        raise ConfigError(
            f"unknown {noun} {name!r}",
            remedy=f"{hint}`edgeladder {kind}` lists them; a .yaml file of yours works too",
        )
    return validate(model, prepare(read_yaml(path)), where=str(path))


def _sizes(values: Any) -> Any:
    """A device's sizes, written as `4GiB`, in bytes."""
    if not isinstance(values, dict):
        return values
    written = {key: values[key] for key in ("ram_bytes", "default_budget_bytes") if key in values}
    return {**values, **{k: parse_size(v) for k, v in written.items() if isinstance(v, str)}}


def load_device(name: str) -> DeviceProfile:
    """A shipped device by name, or one from a YAML file.

    Raises:
        ConfigError: unknown (the nearest name is suggested) or invalid.
    """
    return _load("devices", DeviceProfile, name, _sizes)


def load_profile(name: str, overrides: Iterable[str] = ()) -> Profile:
    """A shipped profile by name or one from a YAML file, with `a.b=c` overrides applied.

    Raises:
        ConfigError: unknown or invalid profile or key (the nearest is suggested).
    """
    profile = _load("profiles", Profile, name, modern_profile)
    return override(profile, overrides)


def says_ladder(name: str) -> bool:
    """Whether a profile has a section `ladder`; one without it trains whatever was exported.

    Raises:
        ConfigError: not YAML.
    """
    values = read_yaml(library("profiles").get(name) or Path(name))
    return isinstance(values, dict) and "ladder" in values


def override(profile: Profile, overrides: Iterable[str]) -> Profile:
    """The profile with `a.b=c` assignments applied; values are parsed as YAML and coerced."""
    values = to_json(profile)
    assignments = list(overrides)
    if any(a.replace(" ", "") == "head.kind=none" for a in assignments):
        values["head"] = {"known": values["head"]["known"]}  # the rest was of the head that goes
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(
                f"--set {assignment!r} has no '='", remedy="write --set train.batch=16"
            )
        target = values
        *parents, last = modern_setting(key.strip()).split(".")
        for part in parents:
            if target.get(part, 0) is None:
                target[part] = {}
            if not isinstance(target.get(part), dict):
                hint = _or(meant(key.strip(), _dotted(Profile)) or [nearest(part, target)])
                raise ConfigError(
                    f"unknown key {key!r} @ {part}{hint}",
                    where="--set",
                    remedy="`edgeladder profiles show default` lists every key",
                )
            target = target[part]
        target[last] = parse_yaml(text, where=f"--set {key.strip()}")
    return validate(Profile, values, where="--set")
