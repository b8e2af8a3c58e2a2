"""The classes that a trained run is asked about: its own, or any names given to it afterwards.

The text tower and the ladder embed any name. A name that the run was trained on keeps the run's
readable name, aliases and templates, so that it says what it always said.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.inference import AskedClasses
from edgeladder.runtime.pictures.class_names import ClassName, read_names, readable
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.pictures.tables import listing
from edgeladder.runtime.towers.tokens import class_prompts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgeladder.core.adapter_record import AdapterRecord

_OPTION = "--classes"
_REMEDY = (
    "write two names or more with commas between them, or name a YAML file like classes.yaml, or "
    "pictures whose class folders are meant"
)


@dataclass(frozen=True)
class Vocabulary:
    """What one answer is chosen from.

    Attributes:
        classes: labels, in the order of the logits.
        names: what the text tower reads of each.
        templates: of prompts; None: those that serve any picture.
        trained: for each class its place among those the run was trained on; None: it is new.
        own: these are the trained classes, all of them in their order.
    """

    classes: list[str]
    names: list[ClassName]
    templates: list[str] | None
    trained: list[int | None]
    own: bool = True

    @classmethod
    def of_run(cls, record: AdapterRecord) -> Vocabulary:
        """The classes that a run was trained on.

        Raises:
            IntegrityError: none, or names of them that are no names.
        """
        aliases = record.text.get("aliases") or []
        if (
            not record.classes
            or len(record.class_names) != len(record.classes)
            or not isinstance(aliases, list)
            or not all(
                isinstance(texts, list) and all(isinstance(text, str) for text in texts)
                for texts in aliases
            )
        ):
            raise IntegrityError(
                "the adapter's classes and their names are not a run's",
                where="adapter.json",
                remedy="copy it again from the run that wrote it, or train again",
            )
        names = [
            ClassName(name, tuple(aliases[k]) if k < len(aliases) else ())
            for k, name in enumerate(record.class_names)
        ]
        places: list[int | None] = list(range(len(record.classes)))
        return cls(list(record.classes), names, record.templates or None, places)

    def prompts(self) -> list[list[str]]:
        """For each class its name and aliases in every template."""
        return class_prompts(self.names, self.templates)

    def asked(self, *, head: bool) -> AskedClasses:
        """What the answer says of them.

        Args:
            head: the run has a closed-form head.
        """
        new = [
            name for name, place in zip(self.classes, self.trained, strict=True) if place is None
        ]
        known = len(self.classes) - len(new)
        part: Literal["all", "own", "none"] = "none"
        if head and not new:
            part = "all"
        elif head and known > 1:  # one alone has nobody to be ordered among
            part = "own"
        return AskedClasses(count=len(self.classes), new=new, head=part)


def asked_classes(told: str, record: AdapterRecord) -> Vocabulary:
    """The vocabulary that `--classes` names.

    Args:
        told: names with commas between them; a YAML file like `classes.yaml`; or labelled
            pictures (folder, .zip, .csv, .jsonl), whose classes are meant.
        record: of the run that is asked.

    Raises:
        ConfigError: fewer than two classes, one twice, or no such file.
        DataError: the file cannot be read, or the pictures.
    """
    trained = Vocabulary.of_run(record)
    classes, described, templates = _read(told)
    canonical = _canonical(trained)
    classes = [canonical.get(name, name) for name in classes]
    _check(classes)
    places = {name: place for place, name in enumerate(trained.classes)}
    names = []
    for name in classes:
        known = trained.names[places[name]] if name in places else readable(name)
        names.append(described.get(name, known))
    found = [places.get(name) for name in classes]
    return Vocabulary(
        classes, names, templates or trained.templates, found, classes == trained.classes
    )


def _read(told: str) -> tuple[list[str], Mapping[str, ClassName], list[str] | None]:
    """Classes in order, the names that the source gives them, its templates if it has any."""
    path = Path(told)
    if path.suffix.lower() in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError("there is no such file", where=f"{_OPTION} {told}", remedy=_REMEDY)
        text = listing(path)
        names, templates = read_names(text, where=str(path))
        return list(names), names, templates
    if told.strip() and "," not in told and path.exists():
        data = open_data(path)
        described = {
            folder: name
            for folder, name in zip(data.classes, data.names, strict=True)
            if name != readable(folder)  # nobody described it: the run may know it better
        }
        return data.classes, described, data.templates
    return [name for name in (part.strip() for part in told.split(",")) if name], {}, None


def _canonical(trained: Vocabulary) -> dict[str, str]:
    """The folder of each trained class by its readable name, where only one has that name."""
    count = Counter(item.name for item in trained.names)
    pairs = zip(trained.names, trained.classes, strict=True)
    by_name = {item.name: folder for item, folder in pairs if count[item.name] == 1}
    return {**by_name, **{folder: folder for folder in trained.classes}}


def _check(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        what = f"{classes[0]!r} alone" if classes else "no class"
        raise ConfigError(f"{what} is nothing to choose among", where=_OPTION, remedy=_REMEDY)
    for name, count in Counter(classes).items():
        if count > 1:
            raise ConfigError(
                f"class {name!r} is there twice", where=_OPTION, remedy="name each class once"
            )
