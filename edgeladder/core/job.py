"""What crosses the pipes between a supervisor and its workers: orders down, results up.

Every phase has one order and one result. The plan worker turns a request into a `Job`, which names
all that the later phases need; each of them gets it with the sizes that the plan, or what was
learnt since, gives the phase. Standard library only: the supervisor counts inside the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from edgeladder.core.config import Profile
from edgeladder.core.intervals import Interval
from edgeladder.core.plan import PhasePlan, Plan
from edgeladder.core.prompt_tensors import PackedPrompts
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.request import TrainRequest


@dataclass(frozen=True, kw_only=True)
class Condensation:
    """When prompts are condensed, and until when the rest is fine-tuned."""

    at: int  # step
    until: int  # step
    keep: float  # share of the prompts that stays
    train: Literal["prompts", "all"]  # what fine-tuning may change


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Pictures and classes of a run; fleets weigh adapters by them."""

    train: int
    test: int
    classes: int
    unlabelled: int = 0  # pictures without a label that may teach


@dataclass(frozen=True, kw_only=True)
class PrecomputeResult:
    """What the cache was given."""

    new: int  # samples (pictures and views) computed now
    reused: int
    text_new: int  # classes
    text_reused: int
    skipped_inputs: list[dict[str, str]]  # path and reason
    seconds: float  # pictures only
    text_seconds: float
    images_per_second: float
    provider: ProviderChoice = ProviderChoice()  # that ran the image tower


@dataclass(frozen=True, kw_only=True)
class PseudoLabelResult:
    """What unlabelled pictures were given labels, and how good the head is without them."""

    pictures: int  # that could be read and are no training or test picture
    used: int = 0  # that were given a label
    strange: int = 0  # that are like none of the labelled ones
    classes: dict[str, int] = field(default_factory=dict)  # labels given, by class
    reason: str = ""  # why none was, where that was decided before looking
    # of the head that labelled pictures alone make, on the held-out ones; None: there are none
    accuracy_without: float | None = None
    accuracy_with: float | None = None  # of the head that both make; None: the profile has no head
    seconds: float = 0.0

    def told(self) -> str:
        """In a line: how many taught, and what that changed."""
        if self.reason:
            return f"unlabelled pictures: none of {self.pictures} taught; {self.reason}"
        line = f"unlabelled pictures: {self.used} of {self.pictures} taught"
        if self.strange:
            line += f", {self.strange} are like none with a label"
        if self.accuracy_with is not None and self.accuracy_without is not None:
            before, after = 100 * self.accuracy_without, 100 * self.accuracy_with
            line += f"; the head alone {before:.1f} % without them, {after:.1f} % with them"
        return line


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request with everything decided."""

    request: TrainRequest
    budget_bytes: int
    seed: int
    threads: int
    engine: str
    bundle_digest: str
    steps: int
    condense: Condensation | None
    proximal: float  # ProLIP's lambda, 1 / shots in the profile's units
    folds: int
    batch: int
    warmup_steps: int
    profile: Profile
    plan: Plan
    counts: Counts
    untaught: PseudoLabelResult | None = None  # unlabelled pictures were there, and teach nothing
    filled: PrecomputeResult | None = None  # the cache held everything: nothing to precompute


@dataclass(frozen=True, kw_only=True)
class PlanOrder:
    """Decide everything about a request."""

    request: TrainRequest
    command: Literal["train", "precompute", "plan"] = "train"


@dataclass(frozen=True, kw_only=True)
class PhaseOrder:
    """Run one phase of a job under these sizes."""

    job: Job
    sizes: PhasePlan = field(default_factory=PhasePlan)
    avoid: tuple[str, ...] = ()  # precompute: pictures that ended its workers


@dataclass(frozen=True, kw_only=True)
class Condensed:
    """What condensation left, and what a step takes with it; medians in milliseconds."""

    prompts_before: int
    prompts_after: int
    step_ms_before: float | None  # None: neither this run nor the one it began from took a step
    step_ms_after: float | None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training did."""

    engine: str
    steps: int
    loss: float | None
    images_per_second: float
    step_ms_median: float
    resumed_from: int | None
    chunk: int | None
    prompts: PackedPrompts | None  # how they are stored; None: as they are
    condensed: Condensed | None = None  # None: nothing was
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of the held-out pictures that were named rightly."""

    zero_shot: float | None
    tuned: float | None
    split: str
    count: int
    zero_shot_interval: Interval | None = None  # Wilson's 95 %
    tuned_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """How good the adapter is."""

    accuracy: Accuracy
    head: dict[str, Any] | None  # its kind and both weights; None: no head
    # of the head alone on the held-out pictures, where unlabelled ones taught it; else None
    head_accuracy: float | None = None
    seconds: float
