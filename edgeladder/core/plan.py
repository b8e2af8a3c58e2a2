"""Records of a memory plan, as they cross from the plan worker to the supervisor and the report.

They say what was decided; how it is decided is `edgeladder.budget`'s. Standard library only: the
supervisor that holds a plan counts inside the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from edgeladder.core.provider import ProviderChoice
from edgeladder.core.sizes import format_size


@dataclass(frozen=True)
class MachineBaseline:
    """Bytes of processes that do nothing yet."""

    supervisor_bytes: int  # the bare supervisor, pages shared with a worker left out
    worker_bytes: int  # interpreter, numpy, onnxruntime and its first session
    settled_bytes: int  # the same after free heap and start-up code went back
    pictures_bytes: int  # more, where pictures are decoded (Pillow, hashes)
    training_bytes: int  # more, where onnxruntime-training's own API is loaded
    file_bytes: int  # of the worker's: pages of libraries, which a cgroup may charge to others
    data_slack_bytes: int  # writable address space that is not resident, for RLIMIT_DATA

    def to_json(self) -> dict[str, int]:
        """Plain values; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, int]) -> MachineBaseline:
        """A baseline from `to_json`'s values.

        Raises:
            TypeError: written by a version that measured something else.
        """
        return cls(**values)


@dataclass(frozen=True)
class Surrounding:
    """A cgroup that this process was started in, and what it leaves."""

    folder: str
    limit_bytes: int
    others_bytes: int  # of what else runs in it, page cache left out

    @property
    def room_bytes(self) -> int:
        """What a budget can be in there."""
        return max(1, self.limit_bytes - self.others_bytes)


@dataclass(frozen=True)
class PhasePlan:
    """One phase: its predicted peak and the sizes that give it; None where a size is not asked."""

    planned_peak_bytes: int = 0
    batch: int | None = None
    chunk: int | None = None  # pictures at a time
    class_chunk: int | None = None  # classes at a time
    group: int | None = None  # samples per opening of a tower's segments
    mode: Literal["fused", "recompute", "chunked"] | None = (
        None  # train: fused, recompute or chunked
    )
    arena: bool | None = None  # train: whether onnxruntime keeps a heap of its own
    max_pixels: int | None = None  # of pictures decoded in full
    picture_bytes: int | None = None  # that one picture may take while it is decoded
    keep_bytes: int | None = None  # train: of decoded class activations kept between steps
    hold_bytes: int | None = None  # train, chunked: activations kept for the backward pass
    moments: Literal["fp32", "int8"] | None = None  # train: fp32 or int8
    whole: bool | None = None  # the whole tower in one go, not segment by segment
    head_pictures: int | None = None  # evaluate: training pictures that a kernel is fitted on
    careful: bool | None = None  # train: a checkpoint every step; the last worker was killed
    provider: str | None = None  # of the image tower; None: the CPU
    gpu_limit_bytes: int | None = None  # that it may take on a GPU
    disk_bytes: int | None = None  # hidden states of a group, gone when it is done
    parts: Mapping[str, int] = field(default_factory=dict)  # what the peak is made of

    def to_json(self) -> dict[str, Any]:
        """Plain values without the sizes that do not apply; `from_json` is its inverse."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return {**values, "parts": dict(self.parts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PhasePlan:
        """A phase from `to_json`'s values, or from sizes alone; other versions' keys are left."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    def sizes(self) -> dict[str, Any]:
        """What a worker is told of its phase: the sizes, without what they were predicted to take.

        `moments` are not among them: they stay as planned, whatever is shrunk.
        """
        told = self.to_json()
        for name in ("planned_peak_bytes", "parts", "disk_bytes", "moments"):
            told.pop(name, None)
        return told


@dataclass(frozen=True)
class DiskSpace:
    """What a cache will take of its disk, at most, and what is free there."""

    folder: str  # the cache, or the nearest folder above it that is there
    cache_bytes: int  # of all samples and classes that the run needs
    present_bytes: int  # of those, at most, that are cached already
    work_bytes: int  # hidden states of a group, gone when it is done
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        """By what it falls short; 0 where there is room."""
        wanted = self.cache_bytes - self.present_bytes + self.work_bytes
        return max(0, wanted - self.free_bytes)


@dataclass(frozen=True)
class Plan:
    """All phases of a command under one budget."""

    budget_bytes: int
    minimum_budget_bytes: int
    fits: bool
    phases: Mapping[str, PhasePlan]
    classes: int
    pictures: int
    baseline: MachineBaseline
    least: Mapping[str, int] = field(default_factory=dict)  # smallest peak of each phase
    head: str = "none"  # kind of the closed-form head that is fitted before the evaluation
    views: int = 0  # augmented ones of each training picture
    unlabelled: int = 0  # pictures without a label that may teach
    surrounding: Surrounding | None = None  # a cgroup with a limit that all this runs in
    provider: ProviderChoice = ProviderChoice()  # of the image tower, and why
    space: DiskSpace | None = None  # None: planned by a version that did not look

    @property
    def narrowed(self) -> str:
        """In words, what made the budget smaller than was asked for; empty where nothing did."""
        around = self.surrounding
        if around is None or self.budget_bytes < around.room_bytes:
            return ""
        return (
            f"the surrounding cgroup {around.folder} is limited to "
            f"{format_size(around.limit_bytes)}, of which what else runs in it takes "
            f"{format_size(around.others_bytes)}"
        )

    def to_json(self) -> dict[str, Any]:
        """The `plan` JSON of the design; `from_json` is its inverse."""
        return {
            "fits": self.fits,
            "budget_bytes": self.budget_bytes,
            "minimum_budget_bytes": self.minimum_budget_bytes,
            "phases": {name: phase.to_json() for name, phase in self.phases.items()},
            "classes": self.classes,
            "pictures": self.pictures,
            "baseline": self.baseline.to_json(),
            "least": dict(self.least),
            "head": self.head,
            "views": self.views,
            "unlabelled": self.unlabelled,
            "surrounding": asdict(self.surrounding) if self.surrounding else None,
            "provider": asdict(self.provider),
            "space": asdict(self.space) if self.space else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """A plan from `to_json`'s values; those of older versions lack the last ones.

        Raises:
            KeyError, TypeError: not a plan.
        """
        return cls(
            budget_bytes=values["budget_bytes"],
            minimum_budget_bytes=values["minimum_budget_bytes"],
            fits=values["fits"],
            phases={name: PhasePlan.from_json(told) for name, told in values["phases"].items()},
            classes=values["classes"],
            pictures=values["pictures"],
            baseline=MachineBaseline.from_json(values["baseline"]),
            least=values.get("least", {}),
            head=values.get("head", "none"),
            views=values.get("views", 0),
            unlabelled=values.get("unlabelled", 0),
            surrounding=Surrounding(**told) if (told := values.get("surrounding")) else None,
            provider=ProviderChoice(**values.get("provider", {})),
            space=DiskSpace(**told) if (told := values.get("space")) else None,
        )
