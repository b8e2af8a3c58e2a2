"""A trained run in Python: its accuracy, its report, and what it is for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from edgeladder.core import progress as terminal
from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.inference import (
    RESULT_OF,
    Deployment,
    Evaluation,
    Form,
    InferenceRequest,
    Prediction,
    Predictions,
)
from edgeladder.core.job import Accuracy
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.records import from_json, read_record
from edgeladder.core.request import TrainRequest
from edgeladder.core.result import RunResult
from edgeladder.core.sizes import parse_size
from edgeladder.jobs.call import Command, Progress, call
from edgeladder.notebook import NotebookProgress, in_notebook
from edgeladder.report import write_report

PathText: TypeAlias = "str | os.PathLike[str]"
Picture: TypeAlias = "PathText | Image.Image | np.ndarray[Any, Any]"
Size: TypeAlias = "str | int"  # `4GB`, `192MB`, or bytes
Settings: TypeAlias = "Mapping[str, object] | Iterable[str]"  # {"train.epochs": 20}, ["a.b=c"]

_RESULT = "result.json"


class Run:
    """A run directory: what `train` made, or a folder with an adapter.

    Attributes:
        folder: the run's directory.
    """

    def __init__(self, folder: PathText):
        """Args: the run's directory, which must be there.

        Raises:
            ConfigError: no run is there.
        """
        self.folder = Path(folder)
        if not any((self.folder / name).is_file() for name in ("adapter.json", "config.yaml")):
            raise ConfigError(
                "no run here",
                where=str(self.folder),
                remedy="name the directory of a run; edgeladder.train(...) makes one",
            )

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        rows = [("run", str(self.folder))]
        if (self.folder / _RESULT).is_file():
            result, accuracy = self.result, self.accuracy
            for label, share in (("zero-shot", accuracy.zero_shot), ("tuned", accuracy.tuned)):
                shown = "–" if share is None else f"{100 * share:.1f} %"
                rows.append((label, f"{shown} of {accuracy.count} pictures ({accuracy.split})"))
            peak = max((p.measured_peak_bytes for p in result.memory.phases.values()), default=0)
            budget = result.memory.budget_bytes
            rows.append(("peak memory", f"{peak / 1e6:.0f} of {budget / 1e6:.0f} MB"))
        cells = "".join(f"<tr><th>{a}</th><td>{escape(b)}</td></tr>" for a, b in rows)
        return f"<table>{cells}</table>"

    @property
    def result(self) -> RunResult:
        """All that `edgeladder train --json` answers of it.

        Raises:
            ConfigError: the run is not finished, or was pulled without its result.
        """
        path = self.folder / _RESULT
        if not path.is_file():
            raise ConfigError(
                "this run is not finished",
                where=str(self.folder),
                remedy="edgeladder.resume(run) goes on with it",
            )
        return read_record(RunResult, path, others_keys=True)

    @property
    def accuracy(self) -> Accuracy:
        """Shares of the held-out pictures named rightly: `.tuned` and `.zero_shot`; `.count`.

        Raises:
            ConfigError: the run is not finished.
        """
        return self.result.accuracy

    @property
    def memory(self) -> MemoryResult:
        """The budget, and planned and measured peak of each phase in bytes."""
        return self.result.memory

    def report(self, out: PathText | None = None, *, pictures: bool = True) -> Path:
        """Write the run as one self-contained HTML page.

        Args:
            out: the page; None: `report.html` in the run.
            pictures: embed thumbnails of the most wrong and the most improved ones.

        Returns:
            Its path.
        """
        return write_report(self.folder, None if out is None else Path(out), pictures=pictures)

    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        top: int = 1,
        classes: Iterable[str] | None = None,
        bundle: PathText | None = None,
        budget: Size | None = None,
        device: str | None = None,
        workers: int | None = None,
        progress: bool | Progress = False,
    ) -> list[Prediction]:
        """Labels and probabilities of pictures, in their order.

        A fresh process opens the model for each call (a second or two): give many pictures at
        once. Pictures that are no files are handed over as lossless files in a temporary folder.

        Args:
            pictures: paths of pictures, folders or .zip archives, PIL images, or arrays of uint8,
                (height, width, 3) in RGB or (height, width) in grey; one, or many.
            top: labels of each.
            classes: names to choose among, new ones too; None: those it was trained on.
            bundle: None: the one that the run remembers.
            budget: memory of all processes; None: the device's default.
            device: device profile, by name or YAML file.
            workers: threads of computation; None: the device's cores.
            progress: show it; or a function that is told (phase, done, total, ...).

        Returns:
            One `Prediction` per picture; one that cannot be read has an `error` and no labels.

        Raises:
            ConfigError, DataError, IntegrityError, BudgetError: as `edgeladder predict`.
        """
        single = isinstance(pictures, (str, os.PathLike, Image.Image, np.ndarray))
        several: list[Any] = [pictures] if single else list(pictures)  # type: ignore[arg-type]  # mypy does not carry `single` here
        with tempfile.TemporaryDirectory(prefix="edgeladder-pictures-") as folder:
            names: dict[str, str] = {}  # path of a handed-over file -> what the caller knows it by
            paths = [_handed_over(item, k, folder, names) for k, item in enumerate(several)]
            request = InferenceRequest(
                command="predict",
                run=str(self.folder),
                paths=paths,
                top=top,
                classes=None if classes is None else ",".join(classes),
                **_place(bundle, budget, device, workers),
            )
            found: Predictions = _infer("predict", request, progress)
        return [replace(item, path=names.get(item.path, item.path)) for item in found.predictions]

    def evaluate(
        self,
        data: PathText | None = None,
        *,
        split: str | None = None,
        bundle: PathText | None = None,
        budget: Size | None = None,
        device: str | None = None,
        workers: int | None = None,
        progress: bool | Progress = True,
    ) -> Evaluation:
        """Accuracy on labelled pictures, by class too; options as `predict`'s.

        Args:
            data: pictures; None: those that the run held out.
            split: train, validation or test; None: test where there is one.
        """
        request = InferenceRequest(
            command="evaluate",
            run=str(self.folder),
            data=None if data is None else os.fspath(data),
            split=split,
            **_place(bundle, budget, device, workers),
        )
        found: Evaluation = _infer("evaluate", request, progress)
        return found

    def deploy(
        self,
        out: PathText = "model.onnx",
        *,
        dtype: str = "fp32",
        output: str = "probabilities",
        portable: bool = False,
        include_resize: bool = False,
        classes: Iterable[str] | None = None,
        bundle: PathText | None = None,
        budget: Size | None = None,
        device: str | None = None,
        workers: int | None = None,
    ) -> Deployment:
        """Write one ONNX file, picture in and probabilities out; options as `predict`'s.

        Args:
            out: the file.
            dtype: of its weights: fp32, fp16 or int8-weights.
            output: probabilities, or embedding: at unit length, with those of the classes beside.
            portable: operators of the ONNX standard alone, for other runtimes.
            include_resize: pictures of any size, resized in the graph.
        """
        request = InferenceRequest(
            command="deploy",
            run=str(self.folder),
            out=os.fspath(out),
            form=Form(dtype=dtype, output=output, portable=portable, include_resize=include_resize),
            classes=None if classes is None else ",".join(classes),
            **_place(bundle, budget, device, workers),
        )
        found: Deployment = _infer("deploy", request, False)
        return found

    def condense(
        self,
        out: PathText | None = None,
        *,
        keep: float = 0.3,
        budget: Size | None = None,
        device: str | None = None,
        progress: bool | Progress = True,
    ) -> Run:
        """Keep the run's most important prompts and fine-tune them, as a run of its own.

        Args:
            out: its directory; None: this one's name and `-condensed`.
            keep: share of the prompts that stays.
            budget: memory of all processes; None: this run's.
            device: device profile; None: this run's.
            progress: show it; or a function that is told (phase, done, total, ...).
        """
        target = self.folder.with_name(f"{self.folder.name}-condensed") if out is None else out
        request = TrainRequest(
            condense=str(self.folder),
            run=os.fspath(target),
            overrides=[f"ladder.prompts.keep={keep}"],
            budget_bytes=size_bytes(budget),
            device=device,
        )
        made = Run(supervised("train", request, progress)["run"])
        made.report()
        return made


def size_bytes(size: Size | None) -> int | None:
    """Bytes of a budget. Raises ConfigError where it is no size."""
    return None if size is None else parse_size(size)


def supervised(
    command: Command, request: TrainRequest | InferenceRequest, progress: bool | Progress
) -> Any:
    """A command's JSON values, its progress shown as asked: in a notebook, on stderr, or told."""
    if not progress:
        return call(command, request)
    if progress is not True:
        return call(command, request, progress)
    with NotebookProgress() if in_notebook() else terminal.Progress() as shown:
        return call(command, request, shown)


def _infer(command: Command, request: InferenceRequest, progress: bool | Progress) -> Any:
    values = supervised(command, request, progress)
    values.pop("memory")  # evidence, which the command line prints
    return from_json(RESULT_OF[command], values, where=f"the {command} worker")


def _place(
    bundle: PathText | None, budget: Size | None, device: str | None, workers: int | None
) -> dict[str, Any]:
    return {
        "bundle": None if bundle is None else os.fspath(bundle),
        "budget_bytes": size_bytes(budget),
        "device": device,
        "threads": workers,
    }


def _handed_over(picture: Any, number: int, folder: str, names: dict[str, str]) -> str:
    """A file of the picture: its own, or a lossless one in `folder`.

    Raises:
        DataError: an array that is no picture.
    """
    if isinstance(picture, (str, os.PathLike)):
        return os.fspath(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)) or picture.ndim < 2:
            raise DataError(
                f"picture {number} is an array of {picture.dtype} {picture.shape}",
                remedy="give uint8: (height, width, 3) in RGB, or (height, width) in grey",
            )
        image: Image.Image = Image.fromarray(np.ascontiguousarray(picture))
    elif isinstance(picture, Image.Image):
        image = picture
    else:
        raise DataError(
            f"picture {number} is a {type(picture).__name__}",
            remedy="give paths, PIL images or arrays of uint8",
        )
    kind = "tiff" if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F") else "png"
    path = os.path.join(folder, f"{number:06d}.{kind}")
    image.save(path, exif=image.getexif())  # its orientation is obeyed, as in a file
    names[path] = str(getattr(picture, "filename", "") or f"picture {number}")
    return path
