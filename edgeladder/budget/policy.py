"""Who decides how much of anything is in memory: this file.

Every threshold, margin, default and smallest size stands here once, with its reason, and so does
what is made smaller when memory runs out. `planner` chooses among the candidates that these numbers
allow; all others (supervisor, workers, commands, doctor) ask.
"""

from __future__ import annotations

from dataclasses import replace

from edgeladder.core.plan import PhasePlan, Plan, Surrounding

# ---- shares of the budget: watch and limit
# after Dask's worker memory manager (distributed.worker.memory)
TRIM_SHARE, SHRINK_SHARE, RESTART_SHARE, STOP_SHARE = 0.70, 0.80, 0.90, 0.95
PLANNED_SHARE = RESTART_SHARE  # a plan fits when its peak stays below this share of the budget
EXACT_SHARE = 0.60  # shared pages are told apart from here on: below, no line is near
CLOSE_SHARE = TRIM_SHARE - 0.1  # measured often from here on
EXPECTED_MARGIN = 1.03  # a prediction may be short by 3 % before its use counts as pressure
LIMIT_MARGIN_SHARE = 0.02  # kept from the workers' kernel limit: the supervisor's own growth
_SUPERVISOR_STEP = 2_000_000  # it differs by less from one time to the next
_SUPERVISOR_GROWTH = 1_000_000  # and grows by less while it waits
LEAST_LIMIT_BYTES = 1 << 20  # the kernel takes no limit of 0; a worker dies at either
DATA_SLACK_BYTES = 96 << 20  # for RLIMIT_DATA, where the baseline was not measured

# ---- the rest of the machine
AVAILABLE_SHARE = 0.05  # of RAM left: the system is about to swap or kill
STALL_PERCENT = 10.0  # of time in which all work waited for memory (PSI full avg10)

# ---- budgets
DEFAULT_BUDGET_SHARE = 0.8  # of available memory, where neither a budget nor a device is named
BARE_BELOW_BYTES = 512_000_000  # below it the command line's own 30 MB matter: a bare supervisor
LEAST_USEFUL_BYTES = 160_000_000  # interpreter, runtime and the smallest useful windows
DEMO_BYTES = 160_000_000  # of `edgeladder demo`: what the smallest supported box can spare
PROBE_LIMIT_BYTES = 512_000_000  # doctor's: any limit will do to see whether the kernel takes one
BASELINE_WORKER_BYTES = 19_000_000  # of the worker that measures it, beside what it measures
PICTURE_DEATHS = 2  # workers that end while they decode the same picture, before it is left out
RETRY_FACTOR = 1.2  # of the peak that was reached, named as the next budget to try

# ---- towers
TOWER_BATCHES = (8, 4, 2, 1)  # tried in this order; above 8 nothing is gained on few cores
PREDICT_BATCH = 4  # pictures in a whole tower at a time: predict's answers come sooner
PROVIDER_BATCH = 8  # pictures at a time on another execution provider: engines are built for it
GROUP = 128  # samples per opening of the segments: costs disk only, and amortises loading weights
TEXT_GROUP = 512  # the same for prompts, whose hidden states are a third
IMAGE_BATCH = 1  # pictures at a time, where the plan does not say
TEXT_BATCH = 4  # prompts at a time, where the plan does not say
PREDICT_GROUP = 32  # pictures decoded before the segments open: they wait as bytes in memory
PREDICT_TEXT_GROUP = 256  # prompts per opening of the text segments
# of pictures, looked up while planning: more are for a worker that tells how far it is
LOOKED_UP_BYTES = 256_000_000
EXACT_PIXELS = 4096 * 4096  # larger pictures are decoded at a lower resolution anyway
FEWEST_PIXELS = 2_000_000  # decoded in full whatever the budget: what cheap cameras make

# ---- phases of the towers alone: whole, or segment by segment with ever smaller batches
STREAMED_PHASES = (
    "precompute", "predict", "deploy", "evaluate_pictures", "judge", "serve", "check", "suggest",
)  # fmt: skip

# ---- check and suggest
# pictures of a class-balanced sample that labels are judged by: memory is their number squared
REVIEW_PICTURES = (1000, 500, 250, 125)

# ---- training
CHUNKS = (128, 64, 32, 16, 8, 4, 2, 1)  # pictures at a time, where a step is chunked
KEEP_BYTES = 64_000_000  # of class activations between steps: they are the same in every step
CAREFUL_STEPS = 25  # steps with a checkpoint each, once memory was short
PROTOTYPE_WINDOW = 16  # pictures whose taps are held while prototypes are sought
TRAINING_HEAP_BYTES = 4 << 20  # that malloc keeps from one step to the next: a sixth faster

# ---- evaluation and heads
EVALUATE_CHUNK = 64  # pictures or classes encoded at a time, where the plan does not say
EVALUATE_CHUNKS = (EVALUATE_CHUNK, *CHUNKS[2:])
EVALUATE_WINDOW = 256  # pictures whose embeddings are held at once; their taps come by the chunk
PROBES = 3  # pictures a deployed file is asked about beside predict
CLASS_CHUNK = 64  # classes the ladder encodes at a time for predict and deploy
MOST_HEAD_PICTURES = 600  # that a kernel is fitted on, classes alike: its memory is theirs squared
MOST_KNOWN_PICTURES = 600  # whose features an adapter keeps, classes alike, each at least one
ENOUGH_LABELLED = 32  # of every class: from here on unlabelled pictures rather harm than teach
FEWEST_UNLABELLED = 8  # of every class that unlabelled pictures say something from
PSEUDO_LABELLED_SHARE = 0.6  # of unlabelled pictures, at most: the surest of each class
WANTED_PSEUDO_LABELLED = 1200  # labelled or not, looked at together where there is room
MOST_PSEUDO_LABELLED = 2400  # the same of many classes: seconds are their number cubed
SELF_TRAINING_PASSES = 3  # over unlabelled pictures whose classes are said to be even
SELF_TRAINING_BELOW = 8  # labelled pictures of a class; with more, one pass is as good or better
FEWEST_HEAD_PICTURES = 2  # of every class: with one, leaving out says nothing


def default_budget(device_bytes: int | None, available_bytes: int) -> int:
    """The budget where none was given: the device's own, else a share of what is available."""
    return device_bytes or int(DEFAULT_BUDGET_SHARE * available_bytes)


def within(budget_bytes: int, surrounding: Surrounding | None) -> int:
    """A budget, or what the surrounding cgroup leaves where that is less."""
    return min(budget_bytes, surrounding.room_bytes) if surrounding else budget_bytes


def wants_bare_supervisor(budget_bytes: int | None) -> bool:
    """Whether a budget is so small that the waiting process must be a bare one."""
    return budget_bytes is not None and budget_bytes < BARE_BELOW_BYTES


def next_budget(budget_bytes: int, peak_bytes: int) -> int:
    """The budget to try after one in which memory ran out again and again."""
    return int(RETRY_FACTOR * max(budget_bytes, peak_bytes))


def lanes(batch: int, threads: int) -> int:
    """How many parts of a batch pass a tower side by side: what a core each is faster at.

    A lane has two samples or more, since one alone is given a second row for its embedding.
    """
    return max(1, min(threads, batch // 2))


def planned_supervisor(private_bytes: int) -> int:
    """What is planned for the waiting process: what it may yet take, rounded up.

    So that the smallest budget that a refusal names is right for the next process as well, which
    differs by a few pages.

    Args:
        private_bytes: of that process now.
    """
    return _SUPERVISOR_STEP * -(-(private_bytes + _SUPERVISOR_GROWTH) // _SUPERVISOR_STEP)


def worker_limit(budget_bytes: int, supervisor_bytes: int, file_bytes: int) -> int:
    """What the kernel lets the workers take of a budget.

    Args:
        budget_bytes: of the whole process tree.
        supervisor_bytes: private to the waiting process.
        file_bytes: library pages that others read first: charged to them, yet resident here.
    """
    margin = int(LIMIT_MARGIN_SHARE * budget_bytes)
    return max(budget_bytes - supervisor_bytes - margin - file_bytes, LEAST_LIMIT_BYTES)


def wanted_head_pictures(kind: str, pictures: int, classes: int, unlabelled: int = 0) -> int:
    """How many of the training pictures a head is fitted on where there is room for it.

    What a kernel holds grows with them, twice over; a class without a picture has no mean.

    Args:
        kind: of the head.
        pictures: with a label.
        classes: C.
        unlabelled: those that may be given a label.
    """
    most = max(MOST_HEAD_PICTURES, classes)
    return min(pictures + unlabelled, max(most, pictures) if kind == "gda" else most)


def most_given_labels(unlabelled: int, classes: int) -> int:
    """How many unlabelled pictures may be given a label; a class's share is rounded."""
    return min(unlabelled, int(PSEUDO_LABELLED_SHARE * unlabelled) + classes // 2 + 1)


def labelled_at_once(labelled: int, most: int, classes: int) -> int:
    """How many labelled pictures are among `most` that are looked at together: half, at most."""
    return min(labelled, max(most // 2, classes))


def wanted_pseudo_labelled(pictures: int, unlabelled: int, classes: int) -> int:
    """How many pictures, with a label or without, are looked at together where there is room."""
    wanted = max(WANTED_PSEUDO_LABELLED, 2 * FEWEST_UNLABELLED * classes)
    return min(pictures + unlabelled, wanted, max(MOST_PSEUDO_LABELLED, classes))


def self_training_passes(even: bool, labelled: int, classes: int) -> int:
    """How often the unlabelled pictures are looked at, with a head fitted anew in between.

    Args:
        even: whether somebody said that classes are equally common among them.
        labelled: pictures with a label of their own.
        classes: C.
    """
    return SELF_TRAINING_PASSES if even and labelled < SELF_TRAINING_BELOW * classes else 1


def self_training_pictures(labelled: int, unlabelled: int, classes: int) -> int:
    """How many pictures, labelled by whomever, the head of a further pass is fitted on."""
    given = most_given_labels(unlabelled, classes)
    return wanted_head_pictures("blend", labelled, classes, given)


def known_pictures(kept: bool, pictures: int, classes: int) -> int:
    """How many of the training pictures an adapter keeps to tell a picture of no class."""
    return min(pictures, max(MOST_KNOWN_PICTURES, classes)) if kept else 0


def fewer_head_pictures(kind: str, pictures: int, classes: int) -> int | None:
    """The next smaller number of pictures to fit a head on; None where there is none.

    A discriminant's memory hardly grows with them, so that fewer would save nothing.
    """
    fewer = pictures // 2
    return fewer if kind != "gda" and fewer >= FEWEST_HEAD_PICTURES * classes else None


def halved_chunk(chunk: int | None, batch: int | None, classes: int) -> int:
    """The next smaller chunk of a step; one that is not chunked yet has all its samples at once."""
    return max(1, (chunk or max(batch or 1, classes)) // 2)


def shrink(plan: Plan, phase: str, sizes: PhasePlan) -> PhasePlan:
    """Sizes for a phase's next attempt after memory ran out.

    Results do not change: chunks are exact, the batch of training stays, and a head on fewer
    pictures is what the plan itself would take under a smaller budget.

    Args:
        plan: of the run, for the number of classes and the head's kind.
        phase: its name; an unknown one is left as it is.
        sizes: of the attempt that failed, with what the worker itself made smaller.
    """
    if phase in STREAMED_PHASES:
        if sizes.provider is not None:
            return replace(sizes, provider=None, gpu_limit_bytes=None)
        if sizes.whole:
            return replace(sizes, whole=False, group=sizes.group or _group_of(phase))
        batch = max(1, (sizes.batch or 2) // 2)
        return replace(sizes, batch=batch, group=max(batch, (sizes.group or 2) // 2))
    if phase == "train":
        # no more classes than pictures at a time, and nothing held: less than was planned for
        return replace(
            sizes,
            chunk=halved_chunk(sizes.chunk, sizes.batch, plan.classes),
            class_chunk=None,
            mode="chunked",
            arena=False,
            keep_bytes=0,
            hold_bytes=0,
            careful=True,
        )
    if phase in ("pseudo_label", "evaluate"):
        kind = plan.head if phase == "evaluate" else "blend"
        fewer = fewer_head_pictures(kind, sizes.head_pictures or 0, plan.classes)
        return replace(
            sizes,
            chunk=max(1, (sizes.chunk or EVALUATE_CHUNK) // 2),
            head_pictures=fewer or sizes.head_pictures,
        )
    return sizes


def _group_of(phase: str) -> int:
    return GROUP if phase in ("precompute", "check", "suggest") else PREDICT_GROUP
