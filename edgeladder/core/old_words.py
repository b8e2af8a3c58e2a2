"""What version 0.1 called differently: its bundles, profiles and settings still load."""

from __future__ import annotations

from typing import Any

_LOSS = {"pull": "proximal"}
_GRAPHS = {
    "pull_image": "backward_image",
    "pull_text": "backward_text",
    "keep_image": "forward_saved_image",
    "keep_text": "forward_saved_text",
    "back_image": "backward_saved_image",
    "back_text": "backward_saved_text",
}
_SETTINGS = {"loss.pull": "loss.proximal"}


def modern_setting(key: str) -> str:
    """Today's name of an `a.b` setting."""
    return _SETTINGS.get(key, key)


def modern_profile(values: Any) -> Any:
    """A profile's plain values with today's keys; anything that is no mapping as it is."""
    if not isinstance(values, dict) or not isinstance(values.get("loss"), dict):
        return values
    return {**values, "loss": {_LOSS.get(key, key): v for key, v in values["loss"].items()}}


def modern_manifest(values: Any) -> Any:
    """A manifest's plain values with today's names of graphs and of the profile's keys."""
    if not isinstance(values, dict) or not isinstance(values.get("ladder"), dict):
        return values
    ladder = dict(values["ladder"])
    if isinstance(ladder.get("graphs"), dict):
        ladder["graphs"] = {_GRAPHS.get(key, key): v for key, v in ladder["graphs"].items()}
    return {**values, "ladder": ladder, "profile": modern_profile(values.get("profile"))}
