"""Licences of published weights, as their model cards name them; the origin has the last word."""

from __future__ import annotations

_APPLE = "Apple's, see its page"
# beginnings of tags and of repositories on the hub -> licence
_BY_TAG = {
    "openai": "MIT",
    "laion": "MIT",
    "datacomp_": "MIT",
    "commonpool_": "MIT",
    "webli": "Apache-2.0",
    "metaclip": "CC-BY-NC-4.0",
    "dfn": _APPLE,
    "datacompdr": _APPLE,
}
_BY_REPOSITORY = {"laion/": "MIT", "facebook/pe-core": "Apache-2.0", "apple/": _APPLE}
UNKNOWN = "see the origin of the weights"


def licence(tag: str, repository: str = "") -> str:
    """The licence of the weights under a tag.

    Args:
        tag: open_clip's.
        repository: of the hub, where the tag names one.
    """
    for known, given in ((_BY_TAG, tag.lower()), (_BY_REPOSITORY, repository.lower())):
        for beginning, name in known.items():
            if given.startswith(beginning):
                return name
    return UNKNOWN
