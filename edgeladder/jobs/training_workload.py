"""What a training's plan is told of model, data and recipe, and which unlabelled pictures count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeladder.budget import policy
from edgeladder.budget.workload import Workload
from edgeladder.core.job import PseudoLabelResult
from edgeladder.core.provider import ProviderChoice

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.config import Profile
    from edgeladder.core.plan import Plan
    from edgeladder.core.request import TrainRequest
    from edgeladder.runtime.pictures.dataset import Dataset


def training_workload(
    request: TrainRequest,
    bundle: Bundle,
    profile: Profile,
    dataset: Dataset,
    pictures: int,
    engine: str,
) -> Workload:
    """The sizes that a prediction depends on.

    Args:
        request: with nothing left to be chosen.
        bundle: the model.
        profile: the recipe.
        dataset: with the unlabelled pictures that may teach.
        pictures: of it that train.
        engine: by name.
    """
    kind, classes, unlabelled = profile.head.kind, len(dataset.classes), len(dataset.unlabelled)
    return Workload(
        manifest=bundle.manifest,
        classes=classes,
        pictures=len(dataset.pictures),
        views=request.views or 0,
        batch=min(profile.train.batch, pictures),
        moments=profile.train.moments,
        engine=engine,
        # fine-tuning what was condensed holds a copy of the rest
        average=profile.train.average > 0 or (profile.ladder.prompts.keep or 1) < 1,
        optimizer=profile.train.optimizer,
        head=kind,
        linear=profile.head.has_linear,
        head_pictures=policy.wanted_head_pictures(
            "blend" if kind == "none" else kind,
            pictures,
            classes,
            policy.most_given_labels(unlabelled, classes),
        ),
        labelled=pictures,
        unlabelled=unlabelled,
        pseudo_labelled=policy.wanted_pseudo_labelled(pictures, unlabelled, classes),
        self_training_passes=policy.self_training_passes(
            profile.unlabelled.classes == "even", pictures, classes
        ),
        known_pictures=policy.known_pictures(profile.head.known, pictures, classes),
        provider=request.chosen or ProviderChoice(),
        files={key: record.size for key, record in bundle.manifest.files.items()},
    )


def may_teach(dataset: Dataset, labelled: int) -> bool:
    """Whether unlabelled pictures help beside so many that have a label."""
    return labelled < policy.ENOUGH_LABELLED * len(dataset.classes)


def untaught(dataset: Dataset, labelled: int, decided: Plan) -> PseudoLabelResult | None:
    """Why unlabelled pictures that are there are left alone; None: they are not, or there are none.

    Args:
        dataset: with all unlabelled pictures that were found.
        labelled: pictures that train.
        decided: the plan.
    """
    if not dataset.unlabelled or decided.unlabelled:
        return None
    reason = "this budget has no room to look at them"
    if not may_teach(dataset, labelled):
        most = policy.ENOUGH_LABELLED
        reason = f"from {most} pictures of a class with a label on they would not help"
    return PseudoLabelResult(pictures=len(dataset.unlabelled), reason=reason)
