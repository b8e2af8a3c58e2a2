"""What a process of each kind costs before it does any work: where every plan starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class MachineBaseline:
    """Bytes of processes that do nothing yet."""

    supervisor_bytes: int  # the bare supervisor, pages shared with a worker left out
    worker_bytes: int  # interpreter, numpy, onnxruntime and its first session
    settled_bytes: int  # the same after free heap and start-up code went back
    pictures_bytes: int  # more, where pictures are decoded (Pillow, hashes)
    training_bytes: int  # more, where onnxruntime-training's own API is loaded
    file_bytes: int  # of the worker's: pages of libraries, which a cgroup may charge to others
    data_slack_bytes: int  # writable address space that is not resident, for RLIMIT_DATA

    def to_dict(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)
