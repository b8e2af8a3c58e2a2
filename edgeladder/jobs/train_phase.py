"""The train worker: an engine, batches from the cache, the loop, and the adapter at the end."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeladder.budget.policy import PROTOTYPE_WINDOW, TRAINING_HEAP_BYTES
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.core.job import Job, PhaseOrder, TrainResult
from edgeladder.core.orders import Outcome
from edgeladder.core.plan import PhasePlan
from edgeladder.core.prompt_tensors import PackedPrompts
from edgeladder.core.records import to_json
from edgeladder.core.trim import keep_freed_heap, release_startup_memory
from edgeladder.jobs.checkpoint import Checkpoints
from edgeladder.jobs.codebook import Codebook
from edgeladder.jobs.condensation import PICTURES, Condense, summary
from edgeladder.jobs.folds import train_folds
from edgeladder.jobs.loop import Callback, Diverged, LoopSettings, TrainLoop
from edgeladder.jobs.prompt_dropout import PromptDropout
from edgeladder.jobs.prototypes import initial_prompts
from edgeladder.jobs.pseudo_label_phase import with_pseudo_labels
from edgeladder.jobs.run_directory import MetricsLog, RunDirectory
from edgeladder.runtime.adapter import Adapter, adapter_of, load_adapter, save_adapter
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


def fit(order: PhaseOrder, control: Control) -> tuple[Outcome, TrainResult | None]:
    """Train from the newest checkpoint, or from the start, to the last step or an order to leave.

    Args:
        order: the job, and sizes: mode, chunk, class_chunk, arena, keep_bytes, hold_bytes,
            careful.
    """
    started = time.monotonic()
    job, request = order.job, order.job.request
    run = RunDirectory(request.folder)
    bundle = Bundle.reopen(request.bundle)
    selection, _ = with_pseudo_labels(run, Selection.load(run.selection))
    keep = order.sizes.keep_bytes or 0
    batches = open_batches(
        bundle, request.cache, selection, batch=job.batch, seed=job.seed, keep_bytes=keep
    )
    selection = selection.without_pictures()
    metrics = MetricsLog(run.metrics, job.request.tensorboard)
    if job.folds:
        outcome = _folds(order, bundle, batches, run, metrics, control)
        if outcome != "done":
            metrics.close()
            return outcome, None
    engine = open_engine_named(job, bundle, order.sizes)
    begin(engine, bundle, batches, job)
    _settle_heap()
    loop = _loop(order, engine, bundle, batches, run.checkpoints, metrics, control)
    resumed_from = loop.resume()
    try:
        done = loop.run()
    except Diverged:  # the loop is back at its last good checkpoint
        loop.apply_average()
        save_adapter(run.folder, _adapter(engine, bundle, selection, job))
        metrics.close()
        raise
    stored: PackedPrompts | None = None
    if done.outcome == "done":
        loop.apply_average()
        # what is saved is copied: in the place of what only training needed
        batches.trim()
        engine.close()
        release_startup_memory()
        stored = save_adapter(run.folder, _adapter(engine, bundle, selection, job))
    metrics.close()
    source = RunDirectory(request.start).metrics if request.start else None
    return done.outcome, TrainResult(
        engine=engine.name,
        steps=done.step,
        loss=done.loss,
        images_per_second=done.images_per_second,
        step_ms_median=done.step_ms_median,
        resumed_from=resumed_from,
        chunk=done.chunk,
        prompts=stored,
        condensed=summary(run.metrics, source) if job.condense else None,
        seconds=round(time.monotonic() - started, 3),
    )


def _settle_heap() -> None:
    """What the start took goes back; what a step takes stays for the next one."""
    release_startup_memory()
    keep_freed_heap(TRAINING_HEAP_BYTES)


def _adapter(engine: Engine, bundle: Bundle, selection: Selection, job: Job) -> Adapter:
    """What was trained, with the classes it was trained on."""
    return adapter_of(
        bundle,
        finalize({**engine.parameters(), **engine.buffers()}, bundle.manifest.ladder.prompts),
        classes=selection.classes,
        class_names=selection.class_names,
        templates=selection.templates,
        text={"aliases": selection.aliases},
        profile=to_json(job.profile),
    )


def _loop(
    order: PhaseOrder,
    engine: Engine,
    bundle: Bundle,
    batches: CacheBatches,
    checkpoints: Path,
    record: Callable[[dict[str, Any]], None],
    control: Control,
    share: float = 1.0,
) -> TrainLoop:
    """The loop over `batches`, for a `share` of the run's steps."""
    job, sizes, train = order.job, order.sizes, order.job.profile.train
    settings = LoopSettings(
        steps=round(job.steps * share),
        restart_at=round(job.condense.at * share) if job.condense else None,
        batch=job.batch,
        learning_rate=train.learning_rate,
        warmup_steps=round(job.warmup_steps * share),
        average=train.average,
        chunk=sizes.chunk if sizes.mode == "chunked" else None,
        checkpoint_steps=train.checkpoint_steps,
        checkpoint_seconds=train.checkpoint_seconds,
        careful=bool(sizes.careful),
    )
    return TrainLoop(
        engine,
        batches,
        settings,
        Checkpoints(checkpoints),
        record,
        control,
        callbacks(order, engine, bundle, batches, settings.restart_at),
    )


def _folds(
    order: PhaseOrder,
    bundle: Bundle,
    batches: CacheBatches,
    run: RunDirectory,
    metrics: MetricsLog,
    control: Control,
) -> Outcome:
    """Ladders that each did not see a share of the pictures, as `head.folds` asks for."""
    job, reader = order.job, batches.reader

    def train(rows: np.ndarray, checkpoints: Path, told: Any) -> tuple[Engine, Outcome]:
        part = reader.part(rows)
        sampler = Sampler(len(rows), job.batch, job.seed, batches.sampler.views)
        chosen = CacheBatches(part, sampler)
        engine = open_engine_named(job, bundle, order.sizes)
        begin(engine, bundle, chosen, job)
        share = len(rows) / len(reader.train_labels)
        loop = _loop(order, engine, bundle, chosen, checkpoints, lambda record: None, told, share)
        loop.resume()
        outcome = loop.run().outcome
        loop.apply_average()
        return engine, outcome

    return train_folds(
        run.folder,
        reader,
        job.folds,
        train,
        control,
        logits=ClassLogits.of(bundle.manifest.model),
        chunk=order.sizes.chunk or job.batch,
        record=metrics,
    )


def begin(engine: Engine, bundle: Bundle, batches: CacheBatches, job: Job) -> None:
    """What a run starts from: the bundle's ladder, another run's adapter, or prototypes."""
    if job.proximal:
        engine.set_proximal(job.proximal)
    start = job.request.start
    if start:
        adapter = load_adapter(Path(start), bundle)
        adapter.parameters = reactivate(adapter.parameters, adapter.record.prompt_tensors)
        adapter.apply(engine)
        return
    prompts = job.profile.ladder.prompts
    if prompts.initialize != "random":
        pictures = batches.reader.windows("train", PROTOTYPE_WINDOW, limit=PICTURES)
        made = initial_prompts(
            bundle.manifest.ladder, prompts, engine.parameters(), pictures, job.seed
        )
        engine.set_parameters(made)


def callbacks(
    order: PhaseOrder,
    engine: Engine,
    bundle: Bundle,
    batches: CacheBatches,
    at: int | None,
) -> list[Callback]:
    """What the profile asks for between the steps; `at`: the step that condenses."""
    found: list[Callback] = []
    names = bundle.manifest.ladder.prompts
    if names.codebook in engine.buffers():
        found.append(Codebook(names))
    condense = order.job.condense
    if condense and at is not None:
        found.append(
            Condense(
                at=at,
                share=condense.keep,
                only_prompts=condense.train == "prompts",
                pictures=lambda: batches.reader.windows("train", PICTURES, limit=PICTURES),
                logits=ClassLogits.of(bundle.manifest.model),
                names=names,
                chunk=order.sizes.chunk or order.job.batch,
            )
        )
    rate = order.job.profile.ladder.prompts.dropout
    if rate:  # the last to act: nothing but the step itself sees what was drawn
        found.append(PromptDropout(names, rate, order.job.seed))
    return found


def open_engine_named(job: Job, bundle: Bundle, sizes: PhasePlan) -> Engine:
    """The engine the plan worker settled on; `module:factory` names one of your own.

    Raises:
        ConfigError: no such module, or nothing of that name in it.
    """
    name = job.engine
    step_plan = StepPlan(
        mode=sizes.mode or "fused",
        chunk=sizes.chunk,
        class_chunk=sizes.class_chunk,
        hold_bytes=sizes.hold_bytes or 0,
        moments=job.plan.phases["train"].moments or "fp32",
        threads=job.threads,
        arena=sizes.arena is not False,
    )
    train, loss = job.profile.train, job.profile.loss
    if ":" in name:
        module, _, factory = name.partition(":")
        try:
            make = getattr(importlib.import_module(module), factory)
        except (ImportError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"no engine {name[:100]!r}: {error}",
                remedy="use --engine auto, stock, ort-training or MODULE:FACTORY",
            ) from error
        made: Engine = make(bundle, step_plan, train, loss)
        return made
    if name == "stock" or step_plan.mode == "chunked":
        # chunked is for evaluation too, whose encoders are the same on both engines; and
        # not through open_engine: the plan worker has checked the environment already, and
        # reading package metadata again would cost this worker 3 MB
        from edgeladder.runtime.engine.stock import StockEngine

        return StockEngine(bundle, step_plan, train, loss)
    from edgeladder.runtime.engine import open_engine

    return open_engine(name, bundle, step_plan, train, loss)
