"""The train worker: an engine, batches from the cache, the loop, and the adapter at the end."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeladder.budget.policy import PROTOTYPE_WINDOW
from edgeladder.core.bundle import Bundle
from edgeladder.core.config import Profile
from edgeladder.core.records import from_json
from edgeladder.core.trim import release_startup_memory
from edgeladder.jobs.checkpoint import Checkpoints
from edgeladder.jobs.codebook import Codebook
from edgeladder.jobs.condensation import PICTURES, Condense
from edgeladder.jobs.folds import train_folds
from edgeladder.jobs.loop import Callback, LoopSettings, TrainLoop
from edgeladder.jobs.prototypes import initial_prompts
from edgeladder.jobs.run_directory import MetricsLog, RunDirectory
from edgeladder.runtime.adapter import adapter_of, load_adapter, save_adapter
from edgeladder.runtime.cache.inputs import CacheBatches, open_batches
from edgeladder.runtime.cache.sampler import Sampler
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.engine.protocol import Engine, StepPlan
from edgeladder.runtime.logits import ClassLogits
from edgeladder.runtime.prompt_storage import finalize, reactivate

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from edgeladder.jobs.control import Control


def fit(values: dict[str, Any], control: Control) -> tuple[str, dict[str, Any]]:
    """Train from the newest checkpoint, or from the start, to the last step or an order to leave.

    Args:
        values: what the plan worker prepared, and `sizes`: mode, chunk, careful.
    """
    started = time.monotonic()
    request, sizes = values["request"], values["sizes"]
    run = RunDirectory(request["run"])
    bundle = Bundle.reopen(request["bundle"])
    selection = Selection.load(run.selection)
    batches = open_batches(
        bundle,
        request["cache"],
        selection,
        batch=values["batch"],
        seed=values["seed"],
        keep_bytes=sizes.get("keep_bytes", 0),
    )
    metrics = MetricsLog(run.metrics)
    if values["folds"]:
        outcome = _folds(values, bundle, batches, run, metrics, control)
        if outcome != "done":
            metrics.close()
            return outcome, {}
    engine = open_engine_named(values, bundle, sizes)
    begin(engine, bundle, batches, values)
    release_startup_memory()
    loop = _loop(engine, bundle, batches, values, run.checkpoints, metrics, control)
    resumed_from = loop.resume()
    done = loop.run()
    stored: dict[str, Any] | None = None
    if done.outcome == "done":
        loop.apply_average()
        # what is saved is copied: in the place of what only training needed
        batches.trim()
        engine.close()
        release_startup_memory()
        adapter = adapter_of(
            bundle,
            finalize({**engine.parameters(), **engine.buffers()}, bundle.manifest.ladder.prompts),
            classes=selection.classes,
            class_names=selection.class_names,
            templates=selection.templates,
            text={"aliases": selection.aliases},
            profile=values["profile"],
        )
        stored = save_adapter(run.folder, adapter)
    metrics.close()
    return done.outcome, {
        "engine": engine.name,
        "steps": done.step,
        "loss": done.loss,
        "images_per_second": done.images_per_second,
        "step_ms_median": done.step_ms_median,
        "resumed_from": resumed_from,
        "chunk": done.chunk,
        "prompts": stored,
        "seconds": round(time.monotonic() - started, 3),
    }


def _loop(
    engine: Engine,
    bundle: Bundle,
    batches: CacheBatches,
    values: dict[str, Any],
    checkpoints: Path,
    record: Callable[[dict[str, Any]], None],
    control: Control,
    share: float = 1.0,
) -> TrainLoop:
    """The loop over `batches`, for a `share` of the run's steps."""
    sizes, train, condense = values["sizes"], values["profile"]["train"], values["condense"]
    settings = LoopSettings(
        steps=round(values["steps"] * share),
        restart_at=round(condense["at"] * share) if condense else None,
        batch=values["batch"],
        learning_rate=train["learning_rate"],
        warmup_steps=round(values["warmup_steps"] * share),
        average=train["average"],
        chunk=sizes.get("chunk") if sizes.get("mode") == "chunked" else None,
        checkpoint_steps=train["checkpoint_steps"],
        checkpoint_seconds=train["checkpoint_seconds"],
        careful=bool(sizes.get("careful")),
    )
    return TrainLoop(
        engine,
        batches,
        settings,
        Checkpoints(checkpoints),
        record,
        control,
        callbacks(engine, bundle, batches, values, settings.restart_at),
    )


def _folds(
    values: dict[str, Any],
    bundle: Bundle,
    batches: CacheBatches,
    run: RunDirectory,
    metrics: MetricsLog,
    control: Control,
) -> str:
    """Ladders that each did not see a share of the pictures, as `head.folds` asks for."""
    reader, sizes = batches.reader, values["sizes"]

    def train(rows: np.ndarray, checkpoints: Path, told: Any) -> tuple[Engine, str]:
        part = reader.part(rows)
        sampler = Sampler(len(rows), values["batch"], values["seed"], batches.sampler.views)
        chosen = CacheBatches(part, sampler)
        engine = open_engine_named(values, bundle, sizes)
        begin(engine, bundle, chosen, values)
        share = len(rows) / len(reader.train_labels)
        loop = _loop(engine, bundle, chosen, values, checkpoints, lambda record: None, told, share)
        loop.resume()
        outcome = loop.run().outcome
        loop.apply_average()
        return engine, outcome

    return train_folds(
        run.folder,
        reader,
        values["folds"],
        train,
        control,
        logits=ClassLogits.of(bundle.manifest.model),
        chunk=sizes.get("chunk") or values["batch"],
        record=metrics,
    )


def begin(engine: Engine, bundle: Bundle, batches: CacheBatches, values: dict[str, Any]) -> None:
    """What a run starts from: the bundle's ladder, another run's adapter, or prototypes."""
    if values["proximal"]:
        engine.set_proximal(values["proximal"])
    start = values["request"]["start"]
    if start:
        adapter = load_adapter(Path(start), bundle)
        adapter.parameters = reactivate(adapter.parameters, adapter.record.prompt_tensors)
        adapter.apply(engine)
        return
    prompts = values["profile"]["ladder"]["prompts"]
    if prompts["initialize"] != "random":
        pictures = batches.reader.windows("train", PROTOTYPE_WINDOW, limit=PICTURES)
        made = initial_prompts(
            bundle.manifest.ladder, prompts, engine.parameters(), pictures, values["seed"]
        )
        engine.set_parameters(made)


def callbacks(
    engine: Engine,
    bundle: Bundle,
    batches: CacheBatches,
    values: dict[str, Any],
    at: int | None,
) -> list[Callback]:
    """What the profile asks for between the steps; `at`: the step that condenses."""
    found: list[Callback] = []
    names = bundle.manifest.ladder.prompts
    if names.codebook in engine.buffers():
        found.append(Codebook(names))
    condense = values["condense"]
    if condense and at is not None:
        found.append(
            Condense(
                at=at,
                share=condense["keep"],
                only_prompts=condense["train"] == "prompts",
                pictures=lambda: batches.reader.windows("train", PICTURES, limit=PICTURES),
                logits=ClassLogits.of(bundle.manifest.model),
                names=names,
                chunk=values["sizes"].get("chunk") or values["batch"],
            )
        )
    return found


def open_engine_named(values: dict[str, Any], bundle: Bundle, sizes: dict[str, Any]) -> Engine:
    """The engine the plan worker settled on; `module:factory` names one of your own."""
    name = values["engine"]
    step_plan = StepPlan(
        mode=sizes.get("mode") or "fused",
        chunk=sizes.get("chunk"),
        class_chunk=sizes.get("class_chunk"),
        hold_bytes=sizes.get("hold_bytes") or 0,
        moments=values["plan"]["phases"]["train"].get("moments") or "fp32",
        threads=values["threads"],
        arena=bool(sizes.get("arena", True)),
    )
    profile = from_json(Profile, values["profile"], where="the plan worker")
    train, loss = profile.train, profile.loss
    if ":" in name:
        module, _, factory = name.partition(":")
        made: Engine = getattr(importlib.import_module(module), factory)(
            bundle, step_plan, train, loss
        )
        return made
    if name == "stock" or step_plan.mode == "chunked":
        # chunked is for evaluation too, whose encoders are the same on both engines; and
        # not through open_engine: the plan worker has checked the environment already, and
        # reading package metadata again would cost this worker 3 MB
        from edgeladder.runtime.engine.stock import StockEngine

        return StockEngine(bundle, step_plan, train, loss)
    from edgeladder.runtime.engine import open_engine

    return open_engine(name, bundle, step_plan, train, loss)
