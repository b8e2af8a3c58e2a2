"""Whether a profile can be trained on a bundle: the ladder's shape is fixed at export."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeladder.core.config import Profile
from edgeladder.core.errors import ConfigError
from edgeladder.core.prompt_kinds import KINDS
from edgeladder.core.records import to_json


@dataclass(frozen=True)
class Misfit:
    """What a profile asks of a ladder that the bundle's is not."""

    reason: str
    remedy: str


def fitted(profile: Profile, exported: Profile, *, any_ladder: bool = False) -> Profile:
    """The profile as a bundle takes it: a head alone trains no ladder, so the exported one stands.

    Args:
        profile: what is asked for.
        exported: what the bundle was exported with.
        any_ladder: whether what is asked for says nothing of the ladder.
    """
    if any_ladder or profile.head.alone:
        return replace(profile, ladder=exported.ladder)
    return profile


def misfit(profile: Profile, exported: Profile, name: str) -> Misfit | None:
    """Why a profile, called `name`, does not fit a bundle; None where it does."""
    prompts = exported.ladder.prompts
    if profile.ladder.prompts.keep is not None and prompts.keep is None:
        return Misfit(
            "this bundle's prompts cannot be condensed: its ladder has no masks"
            if KINDS[prompts.kind].condense
            else "this bundle's ladder has no prompts to condense",
            "export it with masks: `edgeladder export --profile condensation`, or any "
            "profile with --set ladder.prompts.keep=1, and train on that",
        )
    if profile.ladder.prompts.dropout is not None and prompts.dropout is None:
        return Misfit(
            "this bundle's ladder has no input for prompt dropout",
            "export it with --set ladder.prompts.dropout=0.1, or leave the key alone",
        )
    differing = _differing(profile, exported)
    if differing:
        return Misfit(
            f"{', '.join(differing)} of profile {name!r} differ from the exported ladder's",
            f"the ladder is fixed at export: `edgeladder export --profile {name}` "
            "on the host, or leave these keys alone; `edgeladder profiles --bundle BUNDLE` lists "
            "those that fit",
        )
    return None


def require_fit(profile: Profile, exported: Profile, name: str, *, where: str) -> None:
    """Refuse a profile that does not fit.

    Raises:
        ConfigError: naming the keys that differ.
    """
    found = misfit(profile, exported, name)
    if found is not None:
        raise ConfigError(found.reason, where=where, remedy=found.remedy)


def _differing(profile: Profile, exported: Profile) -> list[str]:
    """Keys of the ladder in which the two are not the same graph."""
    wanted, given = to_json(profile.ladder), to_json(exported.ladder)
    for values in (wanted, given):
        # what the device does: how much to keep, given masks, what the prompts begin as, and how
        # much of them a step leaves out
        values["prompts"] |= {
            "initialize": None,
            "keep": values["prompts"]["keep"] is not None,
            "dropout": values["prompts"]["dropout"] is not None,
        }
    return [f"ladder.{key}" for key in given if wanted[key] != given[key]]
