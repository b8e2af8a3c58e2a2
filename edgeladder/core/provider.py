"""onnxruntime's execution providers as EdgeLadder knows them, and which was chosen, and why.

Standard library only, and nothing of onnxruntime is imported: the supervisor asks what a wheel
offers, and counts inside the budget.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeladder.core.errors import ConfigError

CPU, AUTO = "cpu", "auto"

# relative error (2-norm of the difference over that of the CPU's float32 result) of a tap or an
# embedding, in the worst picture of a trial. float32 elsewhere differs by the order of its sums,
# 1e-6 to 1e-5; half precision and TF32 keep 11 bits of a factor, and a cosine of 0.99995 is left
FLOAT32_BOUND = 1e-4
HALF_BOUND = 1e-2
FASTER = 1.1  # times the CPU's pictures a second from which `auto` takes it: a trial is a short one


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One way to run a tower beside the CPU's."""

    name: str  # of `--provider`
    registered: str  # onnxruntime's name for it
    library: str  # that its wheels have, beside the compiled module
    arithmetic: Literal["fp32", "tf32", "fp16"]
    wheel: str  # distribution that brings it
    device: str | None = None  # a file that is there where the hardware is; None: not known by one

    @property
    def bound(self) -> float:
        """The relative error that its results may have."""
        return FLOAT32_BOUND if self.arithmetic == "fp32" else HALF_BOUND


_OPENVINO = "libonnxruntime_providers_openvino.so"
# the order in which `auto` tries them: the fastest that agrees is taken, not the first
PROVIDERS = {
    item.name: item
    for item in (
        Provider(
            name="tensorrt",
            registered="TensorrtExecutionProvider",
            library="libonnxruntime_providers_tensorrt.so",
            arithmetic="fp16",
            wheel="onnxruntime-gpu",
        ),
        Provider(
            name="cuda",
            registered="CUDAExecutionProvider",
            library="libonnxruntime_providers_cuda.so",
            arithmetic="tf32",
            wheel="onnxruntime-gpu",
        ),
        Provider(
            name="openvino-gpu",
            registered="OpenVINOExecutionProvider",
            library=_OPENVINO,
            arithmetic="fp16",
            wheel="onnxruntime-openvino",
            device="/dev/dri/renderD128",
        ),
        Provider(
            name="openvino",
            registered="OpenVINOExecutionProvider",
            library=_OPENVINO,
            arithmetic="fp32",
            wheel="onnxruntime-openvino",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class ProviderChoice:
    """What runs the towers, why, and what its trial on this machine showed."""

    name: str = CPU
    reason: str = "the CPU was asked for"
    # whose results a cache may hold together: provider, precision and version; empty: the CPU's
    arithmetic: str = ""
    worker_bytes: int = 0  # highest resident size of a worker that opened each tower and ran it
    gpu_bytes: int = 0  # beside it, taken out of RAM by a GPU that shares it
    difference: float | None = None  # relative, of the worst tap or embedding; None: not tried
    speedup: float | None = None  # times the CPU's pictures a second; None: not timed

    @property
    def accelerates(self) -> bool:
        """Whether it is not the CPU."""
        return self.name != CPU


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one provider did on this machine with a bundle's towers, beside the CPU."""

    provider: str
    arithmetic: str  # as a choice has it
    failed: str | None = None  # why it cannot be used; None: it ran
    difference: float = 0.0  # relative, of the worst tap or embedding
    seconds: float = 0.0  # a picture, eight at a time
    cpu_seconds: float = 0.0
    worker_bytes: int = 0
    gpu_bytes: int = 0

    @property
    def speedup(self) -> float:
        """Times the CPU's pictures a second."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0

    @property
    def agrees(self) -> bool:
        """Whether it ran, and its results are the CPU's within the stated bound."""
        return self.failed is None and self.difference <= PROVIDERS[self.provider].bound

    def told(self) -> str:
        """What it showed, for a person."""
        if self.failed is not None:
            return f"{self.provider}: {self.failed}"
        bound = PROVIDERS[self.provider].bound
        if not self.agrees:
            return f"{self.provider}: results off by {self.difference:.0e}, {bound:.0e} is allowed"
        return f"{self.provider}: {self.speedup:.2f} x the CPU, alike to {self.difference:.0e}"

    def chosen(self) -> ProviderChoice:
        """The choice of this provider."""
        return ProviderChoice(
            name=self.provider,
            reason=self.told(),
            arithmetic=self.arithmetic,
            worker_bytes=self.worker_bytes,
            gpu_bytes=self.gpu_bytes,
            difference=self.difference,
            speedup=round(self.speedup, 3),
        )


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is known of this machine's providers."""

    key: str  # of bundle, versions and threads
    known: list[Trial]


def choose(wanted: str, trials: list[Trial]) -> ProviderChoice:
    """The fastest provider that agrees and is faster than the CPU; else the CPU, and why.

    Args:
        wanted: `auto`, or a name, which is taken if it agrees, however fast it is.
        trials: of the providers that come into question.

    Raises:
        ConfigError: the one that was named cannot be used.
    """
    usable = [trial for trial in trials if trial.agrees]
    if wanted != AUTO:
        if not usable:
            told = "; ".join(trial.told() for trial in trials)
            raise ConfigError(
                told or f"{wanted} is not in this environment's onnxruntime",
                where="--provider",
                remedy=f"pip install {PROVIDERS[wanted].wheel} in place of onnxruntime "
                "(docs/accelerators.md), or leave the option out"
                if not told
                else "leave the option out: the CPU does without",
            )
        return max(usable, key=lambda trial: trial.speedup).chosen()
    faster = [trial for trial in usable if trial.speedup >= FASTER]
    if faster:
        return max(faster, key=lambda trial: trial.speedup).chosen()
    if not trials:
        return ProviderChoice(reason="onnxruntime here has no provider but the CPU's")
    return ProviderChoice(reason="; ".join(trial.told() for trial in trials))


def check_provider(name: str) -> str:
    """The name of a `--provider`, if there is such a one.

    Raises:
        ConfigError: naming those that there are.
    """
    known = (AUTO, CPU, *PROVIDERS)
    if name in known:
        return name
    from edgeladder.core.spelling import nearest  # difflib, for who misspells alone

    guess = nearest(name, known)
    raise ConfigError(
        f"unknown provider {name!r}",
        where="--provider",
        remedy=(f"did you mean {guess!r}? " if guess else "") + f"use one of {', '.join(known)}",
    )


def offered(wanted: str = AUTO) -> list[Provider]:
    """Providers beside the CPU that this environment's onnxruntime brings libraries for.

    Told by the files of the wheel: whether the hardware is there as well, only a trial shows.

    Args:
        wanted: `auto` for all of them, a name for that one alone.
    """
    folder = _module_folder()
    if wanted == CPU or folder is None:
        return []
    return [
        item
        for item in PROVIDERS.values()
        if wanted in (AUTO, item.name)
        and (folder / item.library).is_file()
        and (wanted != AUTO or item.device is None or Path(item.device).exists())
    ]


def _module_folder() -> Path | None:
    """Where the compiled module of `onnxruntime` lies; None where there is none."""
    found = importlib.util.find_spec("onnxruntime")
    places = found.submodule_search_locations if found is not None else None
    return Path(next(iter(places))) / "capi" if places else None
