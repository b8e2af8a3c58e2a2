"""One execution provider tried on a bundle's image tower: does it agree with the CPU, is it faster.

The CPU of this machine is the referee: the same drawn pictures pass both, and every tap and
embedding is compared element by element, which says more than stored fingerprints would. Timing
leaves opening out on both sides. The CPU runs segment by segment, so that a trial takes no more
memory than the smallest plan beside the accelerator itself.

The text tower stays on the CPU: class names pass it once and are kept, and what it reads of them
are comparisons of whole numbers, which not every provider gets right (OpenVINO's taps of a text
were 0.2 off, and its embedding right).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import ConfigError
from edgeladder.core.provider import PROVIDERS, Trial
from edgeladder.core.trim import trim_heap
from edgeladder.runtime.pictures.decode import normalize
from edgeladder.runtime.pictures.drawn import drawn_pictures
from edgeladder.runtime.session import open_segment
from edgeladder.runtime.towers.accelerated_tower import AcceleratedTower
from edgeladder.runtime.towers.runner import wanted_outputs

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

BATCH = 8  # samples at a time, as plans take them
_RUNS = 3  # timed, of which the median counts

Outputs = dict[str, np.ndarray]


def arithmetic_of(provider: str) -> str:
    """What a cache's name must hold of a provider: its name, its precision, its library's version.

    Kernels and the order of their sums change with the version, which at half precision shows.
    """
    import onnxruntime

    return f"{provider} {PROVIDERS[provider].arithmetic} {onnxruntime.__version__}"


def try_provider(
    bundle: Bundle,
    provider: str,
    *,
    threads: int,
    memory_bytes: int | None,
    mark: Callable[[], tuple[int, int]],
) -> Trial:
    """Run the image tower on a provider, and on the CPU.

    Args:
        memory_bytes: that it may take on a GPU.
        mark: asked for the process's peak and the GPU's share of RAM when the provider is done.

    Returns:
        What was found; a provider that cannot run is one that failed, not an error.
    """
    arithmetic = arithmetic_of(provider)
    preprocess = bundle.manifest.preprocess
    given = normalize(drawn_pictures(preprocess.size)[:BATCH], preprocess)
    try:
        found, seconds = _accelerated(bundle, provider, given, threads, memory_bytes)
        peak, graphics = mark()
    except ConfigError as error:
        return Trial(provider=provider, arithmetic=arithmetic, failed=error.message)
    trim_heap()
    expected, cpu_seconds = _on_cpu(bundle, given, threads)
    return Trial(
        provider=provider,
        arithmetic=arithmetic,
        difference=relative_error(found, expected),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        worker_bytes=peak,
        gpu_bytes=graphics,
    )


def relative_error(found: Outputs, expected: Outputs) -> float:
    """The largest over outputs and samples of |found - expected| / |expected| (2-norms).

    Infinite where something is not a number.
    """
    worst = 0.0
    for name, reference in expected.items():
        rows = reference.reshape(len(reference), -1).astype(np.float64)
        off = found[name].reshape(len(rows), -1).astype(np.float64) - rows
        errors = np.linalg.norm(off, axis=1) / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
        worst = max(worst, float(np.nan_to_num(errors, nan=np.inf).max()))
    return worst


def _accelerated(
    bundle: Bundle, provider: str, given: np.ndarray, threads: int, memory_bytes: int | None
) -> tuple[Outputs, float]:
    """Outputs, and seconds a sample; the engines that later sessions open are built here."""
    names = list(wanted_outputs(bundle.manifest.image, "image"))
    for batch in (1, len(given)):  # a picture that comes alone has an engine of its own
        tower = AcceleratedTower(
            bundle, "image", provider, batch=batch, threads=threads, memory_bytes=memory_bytes
        )
        outputs = tower.run(given[:batch], names)
        if batch == 1:
            del tower
            trim_heap()
    taken = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        tower.run(given, names)
        taken.append(time.perf_counter() - began)
    return outputs, median(taken) / len(given)


def _on_cpu(bundle: Bundle, given: np.ndarray, threads: int) -> tuple[Outputs, float]:
    """Outputs, and seconds a sample, with one segment in memory at a time."""
    tower = bundle.manifest.image
    wanted = wanted_outputs(tower, "image")
    tensors: Outputs = {tower.segments[0].inputs[0].name: given}
    outputs: Outputs = {}
    seconds = 0.0
    for index, segment in enumerate(tower.segments):
        names = [item.name for item in segment.outputs]
        feeds = {item.name: tensors[item.name] for item in segment.inputs}
        path, widen = bundle.path(segment.file), segment.convolves
        session = open_segment(path, threads, spin=True, arena="own", widen=widen)
        tensors.update(zip(names, session.run(names, feeds), strict=True))
        taken = []
        for _ in range(_RUNS):
            began = time.perf_counter()
            session.run(names, feeds)
            taken.append(time.perf_counter() - began)
        seconds += median(taken)
        del session
        trim_heap(collect=False)
        outputs |= {name: tensors[name] for name in names if name in wanted}
        later = {item.name for other in tower.segments[index + 1 :] for item in other.inputs}
        tensors = {name: array for name, array in tensors.items() if name in later}
    return outputs, seconds / len(given)
