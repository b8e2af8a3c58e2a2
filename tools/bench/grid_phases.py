"""One phase of a run with given sizes, planned and then measured in a supervised worker."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeladder.budget import meter
from edgeladder.budget.planner import plan
from edgeladder.budget.policy import known_pictures
from edgeladder.budget.tower_costs import precompute_phases
from edgeladder.budget.workload import Asked, Workload
from edgeladder.core.bundle import Bundle
from edgeladder.core.job import Counts, EvaluateResult, Job, PrecomputeResult, TrainResult
from edgeladder.core.plan import PhasePlan, Plan
from edgeladder.core.request import TrainRequest
from edgeladder.core.yaml_config import override
from edgeladder.jobs.machine_baseline import machine_baseline
from edgeladder.jobs.run_directory import MetricsLog, read_metrics
from edgeladder.jobs.supervisor import Supervisor
from tools.bench.fabricate import fabricate

MB = 1_000_000
_RESULTS: dict[str, Any] = {
    "train": TrainResult,
    "precompute": PrecomputeResult,
    "evaluate": EvaluateResult,
}
_PLENTY = 16_000 * MB
_PICTURES = """
import sys
import numpy as np
from pathlib import Path
from PIL import Image
random = np.random.default_rng(0)
for label in ("one", "two"):
    place = Path(sys.argv[1]) / label
    place.mkdir(parents=True)
    for index in range(int(sys.argv[2])):
        small = random.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(small).resize((1200, 900)).save(place / f"{index}.jpg")
"""


class Phases:
    """Measures configurations; caches and pictures are made once."""

    def __init__(self, folder: Path, steps: int):
        self.folder = folder
        self.steps = steps
        self.baseline = machine_baseline()

    def measure(self, config: dict[str, Any]) -> dict[str, Any]:
        """Run one configuration; the plan's peak and the worker's, both without a supervisor."""
        run = Path(tempfile.mkdtemp(dir=self.folder))
        bundle = Bundle.open(config["bundle"], verify=False)
        kind = self._precompute if config["phase"] == "precompute" else self._train
        phase, request, before = kind(config, bundle, run)
        planned = phase.planned_peak_bytes - phase.parts["supervisor"]
        decided = Plan(
            budget_bytes=_PLENTY,
            minimum_budget_bytes=phase.planned_peak_bytes,
            fits=True,
            phases={**before, config["phase"]: phase},
            classes=config.get("classes", 2),
            pictures=config.get("pictures", 16),
            baseline=self.baseline,
            head=config.get("head", "none"),
        )
        job = self._job(config, bundle, request, decided)
        with Supervisor(request, None) as supervisor:
            supervisor.budget_bytes = _PLENTY
            supervisor.metrics = MetricsLog(run / "metrics.jsonl")
            for name in decided.phases:  # an evaluation needs what was trained
                done = supervisor.phase(name, job, _RESULTS[name])
        records = (r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "phase")
        record = next(r for r in records if r["phase"] == config["phase"])
        # this script is a fat supervisor; what a worker takes does not depend on it
        measured = record["worker_high_water_bytes"]
        return {
            **config,
            "bundle": Path(config["bundle"]).name,
            "planned_mb": planned / MB,
            "measured_mb": measured / MB,
            "error": (planned - measured) / (measured + self.baseline.supervisor_bytes),
            "step_ms": getattr(done, "step_ms_median", None),
            "parts": {name: round(size / MB, 1) for name, size in phase.parts.items()},
        }

    def _job(
        self, config: dict[str, Any], bundle: Bundle, request: TrainRequest, decided: Plan
    ) -> Job:
        changes = [f"train.moments={config['moments']}"] if "moments" in config else []
        weight = "null" if config.get("head") == "none" else 1
        changes += (
            [f"head.kind={config['head']}", f"head.weight={weight}"] if "head" in config else []
        )
        changes += [f"train.average={config['average']}"] if "average" in config else []
        return Job(
            request=request,
            budget_bytes=_PLENTY,
            seed=0,
            threads=config.get("threads", 2),
            engine=config.get("engine", "stock"),
            bundle_digest="",
            steps=self.steps,
            condense=None,
            proximal=0.0,
            folds=0,
            batch=config["batch"],
            warmup_steps=1,
            profile=override(bundle.manifest.profile, changes),
            plan=decided,
            counts=Counts(train=decided.pictures, test=8, classes=decided.classes),
        )

    def _workload(self, config: dict[str, Any], bundle: Bundle) -> Workload:
        return Workload(
            manifest=bundle.manifest,
            classes=config.get("classes", 2),
            pictures=config.get("pictures", 16),
            batch=config["batch"],
            moments=config.get("moments", "auto"),
            engine=config.get("engine", "stock"),
            average=bool(config.get("average")),
            head=config.get("head", "none"),
            head_pictures=config.get("pictures", 0),
            known_pictures=known_pictures(
                bundle.manifest.profile.head.known,
                config.get("pictures", 16),
                config.get("classes", 2),
            ),
            files={name: record.size for name, record in bundle.manifest.files.items()},
        )

    def _train(
        self, config: dict[str, Any], bundle: Bundle, run: Path
    ) -> tuple[PhasePlan, TrainRequest, dict[str, PhasePlan]]:
        cache = self.folder / f"cache-{Path(config['bundle']).name}"
        selection = fabricate(bundle, cache, config["pictures"], config["classes"])
        (run / "checkpoints").mkdir()
        selection.save(run / "selection.safetensors")
        decided = plan(
            self._workload(config, bundle),
            self.baseline,
            _PLENTY,
            supervisor_bytes=meter.private(os.getpid()),
            asked=Asked(
                mode=config.get("mode"),
                chunk=config.get("chunk"),
                arena=config.get("arena"),
                hold=config.get("hold"),
            ),
        )
        request = TrainRequest(
            bundle=str(bundle.folder), cache=str(cache), run=str(run), limit="none"
        )
        phases = decided.phases
        before = {"train": phases["train"]} if config["phase"] == "evaluate" else {}
        return phases[config["phase"]], request, before

    def _precompute(
        self, config: dict[str, Any], bundle: Bundle, run: Path
    ) -> tuple[PhasePlan, TrainRequest, dict[str, PhasePlan]]:
        pictures = self.folder / f"pictures-{config['batch']}"
        if not pictures.is_dir():
            count = max(2, config["batch"])  # of either class: two batches at least
            subprocess.run([sys.executable, "-c", _PICTURES, str(pictures), str(count)], check=True)
        phases = precompute_phases(
            self._workload(config, bundle), self.baseline, meter.private(os.getpid())
        )
        (phase,) = (p for p in phases if (p.whole, p.batch) == (config["whole"], config["batch"]))
        request = TrainRequest(
            bundle=str(bundle.folder),
            data=str(pictures),
            cache=str(run / "cache"),
            run=str(run),
            limit="none",
        )
        return phase, request, {}
