"""Beyond SSH: the same training and averaging on Flower's engine, for thousands of boxes.

A SuperNode on each box runs `client_app`: it trains with this box's `edgeladder train` on its own
pictures and returns the ladder's parameters. `server_app` averages them with Flower's FedAvg,
weighted and bounded by pictures, as `edgeladder fleet rounds` does. tools/fleet/flower_app is the
app to submit with `flwr run`. Needs `pip install 'edgeladder[flower]'` and Python 3.11.

Set FLWR_TELEMETRY_ENABLED=0 to keep Flower from reporting its use.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from edgeladder.core import disk
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, EdgeLadderError
from edgeladder.core.initial import initial_values
from edgeladder.core.ownership import require_ours
from edgeladder.core.records import to_json
from edgeladder.core.tensors import TensorFile
from edgeladder.fleet.admission import LARGEST_VALUE
from edgeladder.fleet.aggregate import bounded_weights
from edgeladder.fleet.averaging import HEADLESS, MOST_PICTURES
from edgeladder.runtime.adapter import adapter_of, save_adapter

client_app = ClientApp()
server_app = ServerApp()
_log = logging.getLogger(__name__)
_SHARES = ("zero-shot", "tuned")
_METRICS = {"num-examples", *_SHARES}
_RUN = "import sys; from edgeladder.cli.app import run; run()"


@client_app.train()  # type: ignore[untyped-decorator]  # flwr is skipped
def train(message: Message, context: Context) -> Message:
    """One round on one box.

    The node's configuration names `bundle` and `data` (paths on the box), and may name `budget`,
    `device`, `cache` and `program`; the run's configuration may have `set`, assignments separated
    by blanks. In Flower's simulation engine nodes have no configuration of their own: there the
    run's names `bundle`, and `data` with one folder for each node; it may name the others too.

    Raises:
        EdgeLadderError: the training failed; its own words are in the message.
        ConfigError: the ladder has integer state, which cannot be averaged.
    """
    node = _settings(context)
    bundle = Bundle.open(node["bundle"], verify=False)
    number = int(message.content["config"]["server-round"])
    with tempfile.TemporaryDirectory(prefix="edgeladder-flower-") as folder:
        arguments = ["--json", "--bundle", node["bundle"], "--data", node["data"]]
        arguments += ["--cache", node.get("cache", "cache"), "--run", f"{folder}/run"]
        for name in ("budget", "device"):
            arguments += [f"--{name}", node[name]] if name in node else []
        for assignment in str(context.run_config.get("set", "")).split():
            arguments += ["--set", assignment]
        arguments += ["--set", HEADLESS]
        if number > 1:  # the first begins from the bundle, as everywhere
            _save(bundle, _values(message.content["arrays"]), Path(folder) / "start")
            arguments += ["--start", f"{folder}/start"]
        program = [node["program"]] if "program" in node else [sys.executable, "-c", _RUN]
        done = subprocess.run([*program, "train", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise EdgeLadderError((done.stdout or done.stderr)[-2000:])
        result = json.loads(done.stdout)
        values = dict(TensorFile(f"{folder}/run/adapter.safetensors"))
    exact = [name for name, value in values.items() if value.dtype.kind != "f"]
    if exact:
        raise ConfigError(
            f"{exact[0]} is no float and cannot be averaged",
            remedy="use a profile without masks or integer codes",
        )
    accuracy = result["accuracy"]
    metrics = {
        "num-examples": int(result["counts"]["train"]),
        "zero-shot": float(accuracy["zero_shot"]),
        "tuned": float(accuracy["tuned"]),
    }
    content = RecordDict({"arrays": _record(values), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


class BoundedFedAvg(FedAvg):
    """FedAvg that believes no node more than `fleet rounds` believes a box.

    Nodes that claim impossible counts, or send other tensors than were sent, other metrics, or
    values that no training gives, are left out; no count weighs more than half.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], **options: Any):
        """Average tensors of these shapes; `options` are FedAvg's."""
        super().__init__(**options)
        self.shapes = shapes

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg, with what nodes claim bounded; (None, None) where nobody's is left."""
        failed, kept = [], []
        for reply in replies:
            if reply.has_error():
                failed.append(reply)
                continue
            why = self._refused(reply.content)
            if why is None:
                kept.append(reply)
            else:
                _log.warning("node %d is left out: %s", reply.metadata.src_node_id, why)
        if kept:
            metrics = [_metrics(reply.content) for reply in kept]
            counts = np.array([found[self.weighted_by_key] for found in metrics], np.float64)
            for found, weight in zip(metrics, bounded_weights(counts), strict=True):
                found[self.weighted_by_key] = float(weight)
        aggregated: tuple[ArrayRecord | None, MetricRecord | None]
        aggregated = super().aggregate_train(server_round, [*kept, *failed])
        return aggregated

    def _refused(self, content: RecordDict) -> str | None:
        """Why a node's reply is left out; None: it is not."""
        if list(content.array_records) != ["arrays"] or list(content.metric_records) != ["metrics"]:
            return "not one record of tensors and one of metrics"
        metrics = _metrics(content)
        if set(metrics) != _METRICS:  # FedAvg ends the whole round where one differs
            return "other metrics than were asked for"
        count = metrics.get(self.weighted_by_key)
        if not isinstance(count, (int, float)) or not 0 < count <= MOST_PICTURES:
            return f"{str(count)[:40]} is no number of pictures"
        if not all(
            isinstance(metrics[name], float) and 0 <= metrics[name] <= 1 for name in _SHARES
        ):
            return "accuracies that are none"
        try:
            values = _values(next(iter(content.array_records.values())))
        except (ValueError, TypeError, EOFError, OSError) as error:
            return f"unreadable tensors: {str(error)[:100]}"
        if {name: value.shape for name, value in values.items()} != self.shapes:
            return "other tensors than were sent"
        if not all(value.dtype.kind == "f" and np.abs(value).max(initial=0.0) <= LARGEST_VALUE
                   for value in values.values()):  # fmt: skip
            return "values that no training gives"
        return None


def _metrics(content: RecordDict) -> MetricRecord:
    """The one record of metrics of a reply that was checked."""
    return next(iter(content.metric_records.values()))


@server_app.main()  # type: ignore[untyped-decorator]  # flwr is skipped
def serve(grid: Grid, context: Context) -> None:
    """All rounds; the average goes to `out` (adapter.safetensors, adapter.json).

    The run's configuration: `bundle`, `out`, `rounds`, `nodes` (how many must take part).
    """
    config: dict[str, Any] = dict(context.run_config)
    bundle = Bundle.open(str(config["bundle"]))
    out = Path(str(config["out"]))
    require_ours(out, "adapter", option="out")
    nodes = int(config["nodes"])
    initial = dict(initial_values(bundle))
    strategy = BoundedFedAvg(
        {name: np.shape(value) for name, value in initial.items()},
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_available_nodes=nodes,
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=_record(initial),
        num_rounds=int(config["rounds"]),
    )
    _save(bundle, _values(result.arrays), out)


def _settings(context: Context) -> dict[str, str]:
    """What this node is told; a simulated one takes its folder of the run's `data`.

    Raises:
        ConfigError: fewer folders than simulated nodes.
    """
    node = {str(key): str(value) for key, value in context.node_config.items()}
    if "data" in node or "partition-id" not in node:
        return node
    run = {str(key): str(value) for key, value in context.run_config.items() if value != ""}
    folders = sorted(path for path in Path(run["data"]).iterdir() if path.is_dir())
    number = int(node["partition-id"])
    if number >= len(folders):
        raise ConfigError(
            f"{len(folders)} folders for {node['num-partitions']} simulated nodes",
            where=run["data"],
            remedy="make one folder of pictures for each node",
        )
    own = folders[number]
    node = {name: run[name] for name in ("bundle", "budget", "device", "program") if name in run}
    node["data"] = str(own)
    node["cache"] = str(Path(run.get("cache", "cache")) / own.name)
    return node


def _record(values: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in values.items()})


def _values(record: Any) -> dict[str, np.ndarray]:
    return {str(name): np.asarray(array.numpy()) for name, array in record.items()}


def _save(bundle: Bundle, values: dict[str, np.ndarray], folder: Path) -> None:
    """Write parameters as an adapter of the bundle."""
    disk.make_folders(folder)
    manifest = bundle.manifest
    profile = to_json(manifest.profile)
    adapter = adapter_of(
        bundle, values, classes=manifest.classes, class_names=manifest.classes, templates=[],
        profile=profile,
    )  # fmt: skip
    save_adapter(folder, adapter)
