"""`python -m edgeladder.serve.camera`: a camera's frames as files, in a process of its own.

FFmpeg (by PyAV) opens what it can: V4L2 devices, RTSP and HTTP streams, files. It is large, decodes
what a network sends, and can hang; so it runs apart, under a limit of its own, and may be ended at
any time. Frames are whole JPEG files as soon as they have their name.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeladder.core.records import from_json
from edgeladder.jobs import orphan

FRAME = "camera-"  # how a frame's file name begins
_QUALITY = 92  # of the JPEG: what a classifier sees of it is a small square
_OPEN_SECONDS, _READ_SECONDS = 10.0, 10.0
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts at a live source
_FULL_SECONDS = 0.2  # between two looks whether there is room again
_STREAMS = "rtsp,rtsps,rtp,srtp,rtmp,tcp,udp,tls,http,https,crypto,data"


@dataclass(frozen=True, kw_only=True)
class Grab:
    """What the process is told, as a line of JSON on stdin: a source may hold a password."""

    source: str
    folder: str
    every_seconds: float
    most_waiting: int  # frames that lie in the folder; a camera's further ones are left out
    limit_bytes: int  # of writable address space
    parent: int  # process id


def is_device(source: str) -> bool:
    """Whether it is a camera of this machine."""
    return source.startswith("/dev/")


def is_live(source: str) -> bool:
    """Whether it goes on while nobody looks; a file waits, and has an end."""
    return "://" in source or is_device(source)


def frames(source: str, every_seconds: float) -> Iterator[Any]:
    """Frames of a source, one in so many seconds: of the clock where it is live, else of the file.

    Raises:
        OSError, ValueError: as FFmpeg says (`av.FFmpegError` is one of them).
    """
    import av

    live = is_live(source)
    options = {"protocol_whitelist": _STREAMS if "://" in source else "file"}
    if source.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # torn frames are worse than late ones
    kind = "v4l2" if is_device(source) else None
    limits = (_OPEN_SECONDS, _READ_SECONDS) if live else None
    with av.open(source, format=kind, options=options, timeout=limits) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # every further thread holds frames of its own
        due = None
        for frame in container.decode(stream):
            now = time.monotonic() if live else float(frame.time or 0.0)
            if due is None or now >= due:
                due = max(now, (now if due is None else due) + every_seconds)
                yield frame


def write(frame: Any, folder: Path) -> None:
    """A frame as a JPEG file named by the time; complete or absent."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / f"{FRAME}{stamp}.jpg"
    temporary = folder / f".{path.name}.part"
    with open(temporary, "wb") as stream:
        frame.to_image().save(stream, "JPEG", quality=_QUALITY)
    temporary.rename(path)


def _waiting(folder: Path) -> int:
    return sum(name.startswith(FRAME) for name in os.listdir(folder))


def _grab(told: Grab) -> None:
    folder = Path(told.folder)
    for frame in frames(told.source, told.every_seconds):
        while _waiting(folder) >= told.most_waiting:
            if is_live(told.source):
                break
            time.sleep(_FULL_SECONDS)
        else:
            write(frame, folder)


def main() -> int:
    """Until the source ends, where it has an end."""
    told = from_json(Grab, json.loads(sys.stdin.readline()), where="the camera's order")
    orphan.end_with_parent(told.parent)
    resource.setrlimit(resource.RLIMIT_DATA, (told.limit_bytes, told.limit_bytes))
    failures = 0
    while True:
        began = time.monotonic()
        try:
            _grab(told)
            said = "the stream ended"
        except MemoryError:
            said = "its frames are too large for the memory it may take"
        except (OSError, ValueError, IndexError) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        else:
            if not is_live(told.source):
                return 0
        if not is_live(told.source):
            print(said, file=sys.stderr, flush=True)
            return 1
        failures = 0 if time.monotonic() - began > _RETRY_SECONDS[-1] else failures
        pause = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
        if not failures:
            print(f"{said}; tried again", file=sys.stderr, flush=True)
        failures += 1
        time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main())
