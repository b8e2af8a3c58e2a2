"""What a trained run is used for: orders to the worker of predict, evaluate or deploy, and results.

One reader and one writer for each, as for every record (`records`). Standard library only: the
command that waits for the worker counts inside the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeladder.core.comparison import Judgements
from edgeladder.core.intervals import Interval
from edgeladder.core.plan import PhasePlan, Surrounding
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.review import Review
from edgeladder.core.suggestion import Suggestions

Command = Literal["predict", "evaluate", "deploy", "judge", "serve", "check", "suggest"]
# the phase of each: `evaluate` alone is what a training does from its cache
PHASE_OF: dict[str, str] = {
    "predict": "predict",
    "evaluate": "evaluate_pictures",
    "deploy": "deploy",
    "judge": "judge",
    "serve": "serve",
    "check": "check",
    "suggest": "suggest",
}


OUTPUTS = ("probabilities", "embedding")
WHOLE_SIDE = 640  # px, at most, of pictures that a deployed file's own resizing is compared on


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a deployed file is to be."""

    dtype: str = "fp32"  # of its weights: fp32, fp16 or int8-weights
    output: str = "probabilities"  # or embedding: (D,) at unit length, for an index
    portable: bool = False  # in operators of the ONNX standard alone
    include_resize: bool = False  # pictures of any size, resized in the graph

    @property
    def embeds(self) -> bool:
        """Whether it gives embeddings."""
        return self.output == "embedding"


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """One command below a budget as the user asked for it; all paths as text."""

    command: Command
    run: str = ""  # run directory, or a folder with an adapter; check: none; suggest: maybe
    bundle: str | None = None  # None: the one the run remembers
    paths: list[str] = field(default_factory=list)  # predict: pictures, folders, archives
    top: int = 1  # predict: labels per picture; suggest: pictures
    data: str | None = None  # evaluate; None: what the run trained on
    cache: str | None = None  # evaluate; None: the run's
    split: str | None = None  # evaluate: train, validation or test; None: what was held out
    classes: str | None = None  # names, or where they are found; None: those it was trained on
    like: str | None = None  # judge: the run whose held-out pictures are meant; None: its own
    listed: int = 100  # check: suspects in the list
    thumbnails: bool = False  # check: whether the answer holds small pictures
    seed: int = 0  # check: of sample and folds
    out: str = "model.onnx"  # deploy: the file
    form: Form = Form()  # deploy: what the file is to be
    provider: str = "auto"  # of the image tower: auto, cpu, or one by name; deploy: the CPU
    chosen: ProviderChoice | None = None  # what that came to on this machine; None: the CPU
    budget_bytes: int | None = None  # None: the device's default, else a share of what is available
    device: str | None = None  # device profile by name or YAML file
    threads: int | None = None  # None: the device's cores, at most this machine's
    limit: str = "auto"  # auto, none, or one layer by name
    restarts: int = 4  # of a worker that was killed or ran out of memory, with less each time


@dataclass(frozen=True, kw_only=True)
class InferenceOrder:
    """A request for a worker, which plans it and runs it."""

    request: InferenceRequest
    budget_bytes: int
    supervisor_bytes: int  # of the process that waits
    sizes: PhasePlan | None = None  # after memory ran out; None: as planned
    avoid: tuple[str, ...] = ()  # pictures that ended its workers
    only_plan: bool = False  # refuse, or say what was decided: nothing runs
    surrounding: Surrounding | None = None  # a cgroup with a limit around all this


@dataclass(frozen=True, kw_only=True)
class AskedClasses:
    """What was chosen among, where it was not the classes that the run was trained on."""

    count: int
    new: list[str]  # that training never saw: by their names alone
    head: Literal["all", "own", "none"]  # of which the closed-form head speaks; own: not of `new`


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class and how probable it is."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One picture's most probable labels, best first; none where it cannot be read."""

    path: str
    labels: list[Label]
    error: str | None = None
    known: float | None = None  # higher: more like the trained classes; None: the run cannot say
    unknown: bool = False  # `known` is below the run's threshold: probably none of the classes


@dataclass(frozen=True, kw_only=True)
class Question:
    """One picture's file, put to a worker that stays."""

    number: int  # its answer's
    path: str
    top: int = 1  # labels


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The `predict` JSON of the design."""

    predictions: list[Prediction]
    asked: AskedClasses | None = None
    provider: ProviderChoice | None = None  # that ran the image tower; None: not told


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """Shares of one class's pictures that were named rightly; None where there are none."""

    count: int
    accuracy: float | None
    zero_shot_accuracy: float | None
    interval: Interval | None = None  # Wilson's 95 % of `accuracy`
    zero_shot_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Pictures whose largest probability lies in a range, and how often it was right."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean of the largest probabilities; None: no picture
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Whether probabilities hold: `calibration` of the `evaluate` JSON."""

    expected_error: float  # mean distance of confidence and accuracy over the bins, 0 to 1
    negative_log_likelihood: float
    bins: list[ReliabilityBin]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A picture that cannot be read."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The `evaluate` JSON of the design."""

    accuracy: float | None
    zero_shot_accuracy: float | None
    count: int
    split: str
    classes: list[str]  # in label order
    per_class: dict[str, ClassAccuracy]
    confusion: list[list[int]]  # true, predicted
    interval: Interval | None = None  # Wilson's 95 % of `accuracy`
    zero_shot_interval: Interval | None = None
    calibration: Reliability | None = None  # None: no pictures
    skipped: list[Skipped] = field(default_factory=list)
    asked: AskedClasses | None = None
    provider: ProviderChoice | None = None  # that ran the image tower; None: not told


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a deployed file."""

    name: str
    shape: list[int | str]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a deployed file and predict were both asked about."""

    pictures: int
    origin: str  # data: pictures the run knows; synthetic: drawn, because it knows none here


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The `deploy` JSON of the design."""

    path: str
    bytes: int
    dtype: str
    classes: list[str]
    input: Port
    output: Port
    weights: int  # stored small
    difference: float  # the largest between the file's logits, or embeddings, and predict's
    compared: Compared
    known: Port | None = None  # the further output; None: the run cannot say
    known_threshold: float | None = None  # below it a picture is unknown
    known_difference: float | None = None  # the largest between the file's scores and predict's
    class_embeddings: Port | None = None  # the further output beside an embedding
    resize_difference: float | None = None  # the largest of pixels, in grey levels; None: no resize
    asked: AskedClasses | None = None


InferenceResult = Predictions | Evaluation | Deployment | Judgements | Review | Suggestions
RESULT_OF: dict[str, type[InferenceResult]] = {
    "predict": Predictions,
    "evaluate": Evaluation,
    "deploy": Deployment,
    "judge": Judgements,
    "check": Review,
    "suggest": Suggestions,
}
