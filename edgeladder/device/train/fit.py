"""The train worker: an engine, batches from the cache, the loop, and the adapter at the end."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeladder.device.data.inputs import open_batches
from edgeladder.device.data.selection import Selection
from edgeladder.device.engine.protocol import Engine, StepPlan
from edgeladder.device.infer.adapter import adapter_of, load_adapter, save_adapter
from edgeladder.device.memory.trim import settle
from edgeladder.device.train.checkpoint import Checkpoints
from edgeladder.device.train.loop import LoopSettings, TrainLoop
from edgeladder.device.train.plain import PlainBundle, plain
from edgeladder.device.train.run import MetricsLog, RunDirectory

if TYPE_CHECKING:
    from edgeladder.bundle import Bundle
    from edgeladder.device.train.control import Control


def fit(values: dict[str, Any], control: Control) -> tuple[str, dict[str, Any]]:
    """Train from the newest checkpoint, or from the start, to the last step or an order to leave.

    Args:
        values: what the plan worker prepared, and `sizes`: mode, chunk, careful.
    """
    started = time.monotonic()
    request, sizes = values["request"], values["sizes"]
    run = RunDirectory(request["run"])
    bundle = cast("Bundle", PlainBundle(request["bundle"]))
    selection = Selection.load(run.selection)
    train = values["profile"]["train"]
    engine = open_engine_named(values, bundle, sizes)
    if request["start"]:
        load_adapter(Path(request["start"]), bundle).apply(engine)
    batches = open_batches(
        bundle,
        request["cache"],
        selection,
        batch=values["batch"],
        seed=values["seed"],
        keep_bytes=sizes.get("keep_bytes", 0),
    )
    settle()
    metrics = MetricsLog(run.metrics)
    settings = LoopSettings(
        steps=values["steps"],
        batch=values["batch"],
        learning_rate=train["learning_rate"],
        warmup_steps=values["warmup_steps"],
        average=train["average"],
        chunk=sizes.get("chunk") if sizes.get("mode") == "chunked" else None,
        checkpoint_steps=train["checkpoint_steps"],
        checkpoint_seconds=train["checkpoint_seconds"],
        careful=bool(sizes.get("careful")),
    )
    loop = TrainLoop(engine, batches, settings, Checkpoints(run.checkpoints), metrics, control)
    resumed_from = loop.resume()
    done = loop.run()
    if done.outcome == "done":
        loop.apply_average()
        adapter = adapter_of(
            bundle,
            engine.parameters(),
            classes=selection.classes,
            class_names=selection.class_names,
            templates=selection.templates,
            text={"aliases": selection.aliases},
            buffers=engine.buffers(),
            profile=values["profile"],
        )
        save_adapter(run.folder, adapter)
    metrics.close()
    return done.outcome, {
        "engine": engine.name,
        "steps": done.step,
        "loss": done.loss,
        "images_per_second": done.images_per_second,
        "step_ms_median": done.step_ms_median,
        "resumed_from": resumed_from,
        "chunk": done.chunk,
        "seconds": round(time.monotonic() - started, 3),
    }


def open_engine_named(values: dict[str, Any], bundle: Bundle, sizes: dict[str, Any]) -> Engine:
    """The engine the plan worker settled on; `module:factory` names one of your own."""
    name = values["engine"]
    step_plan = StepPlan(
        mode=sizes.get("mode") or "fused",
        chunk=sizes.get("chunk"),
        moments=values["plan"]["phases"]["train"].get("moments") or "fp32",
        threads=values["threads"],
        arena=bool(sizes.get("arena", True)),
    )
    train, loss = plain(values["profile"]["train"]), plain(values["profile"]["loss"])
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
        from edgeladder.device.engine.stock import StockEngine

        return StockEngine(bundle, step_plan, train, loss)
    from edgeladder.device.engine import open_engine

    return open_engine(name, bundle, step_plan, train, loss)
