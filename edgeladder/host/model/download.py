"""Weights and tokenizers from elsewhere: at hand, within reach, or at which address they lie."""

from __future__ import annotations

import logging
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeladder.core.errors import ConfigError

_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # as open_clip looks
_REACH_SECONDS = 5.0


@dataclass(frozen=True)
class Remote:
    """A file of a repository on the hub; the first name that is there counts."""

    repository: str
    files: tuple[str, ...]

    @property
    def address(self) -> str:
        """Where a browser downloads it."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repository}/resolve/main/{self.files[0]}"

    @property
    def at_hand(self) -> bool:
        """Whether the hub's cache on this machine holds it."""
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(self.repository, file) for file in self.files)
        return any(isinstance(path, str) for path in found)


def weights(config: Mapping[str, Any]) -> Remote | None:
    """The hub's file that open_clip takes for a tag; None where the tag names none."""
    place = str(config.get("hf_hub") or "")
    repository, _, file = place.rpartition("/")
    if not repository:
        return None
    return Remote(repository, (file,) if file else _WEIGHTS)


def of_repository(repository: str) -> Remote:
    """The weights of a repository in open_clip's own format."""
    return Remote(repository, _WEIGHTS)


def require(remote: Remote, what: str, *, option: str, instead: str) -> None:
    """Refuse at once what is neither on this machine nor within reach.

    The hub's library would try for half a minute, and open_clip would then try a second name.

    Args:
        remote: the file.
        what: its name in the message.
        option: that takes it from elsewhere.
        instead: what else can be done.

    Raises:
        ConfigError: with the address to download from on another machine.
    """
    if remote.at_hand:
        return
    reason = unreachable(remote.address)
    if reason is not None:
        raise ConfigError(
            f"{what} are not on this machine, and cannot be downloaded: {reason}",
            where=remote.address,
            remedy=f"download that address on another machine and give it with {option}{instead}",
        )


def unreachable(address: str) -> str | None:
    """Why nothing can be asked at an address; None where something answers, whatever it says."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # it is there, and the download itself says what it lacks
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return None  # the hub's library has certificates of its own
        return f"{urllib.parse.urlsplit(address).hostname} is out of reach ({_short(error.reason)})"
    except OSError as error:
        return f"{urllib.parse.urlsplit(address).hostname} is out of reach ({_short(error)})"


def _short(reason: object) -> str:
    return (getattr(reason, "strerror", None) or str(reason) or type(reason).__name__).lower()


@contextmanager
def one_voice() -> Iterator[None]:
    """Let each library's warning through once, and leave to the error what the error says.

    The hub's logger has a handler of its own: what it hands up as well is printed twice. open_clip
    tells the root logger of a failure that it then raises.
    """
    hub, root = logging.getLogger("huggingface_hub"), logging.getLogger()
    propagate, level = hub.propagate, root.level
    hub.propagate = False
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        hub.propagate = propagate
        root.setLevel(level)


def what_is(path: Path) -> str | None:
    """What a file is that is no weights; None where its beginning tells nothing."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself"
    if head.lstrip()[:1] == b"<":
        return "it is a web page"
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive that is cut short or of something else"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"it is text: {head[:40].decode().strip()!r}"
    return None
