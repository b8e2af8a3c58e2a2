"""A systemd unit for a service: started at boot, held to its memory, and shut in."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a unit is made of."""

    about: str
    words: Sequence[str]  # of the command, after the program
    budget_bytes: int
    writes: Sequence[Path] = ()  # folders
    reads: Sequence[Path] = ()
    network: bool = False
    devices: bool = False  # a camera's

    def text(self) -> str:
        """The unit's file."""
        paths = [*self.reads, *self.writes]
        lines = [
            "[Unit]",
            f"Description={_plain(self.about)}",
            "Wants=network-online.target" if self.network else "",
            "After=network-online.target" if self.network else "",
            *(f"RequiresMountsFor={_quoted(str(path))}" for path in paths),
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={' '.join(_quoted(word) for word in (*program(), *self.words))}",
            f"User={_plain(getpass.getuser())}",
            "Restart=on-failure",
            "RestartSec=5",
            "# wrong usage, no such data, a changed file: the same again would end the same",
            "RestartPreventExitStatus=2 4 5",
            "TimeoutStopSec=30",
            "",
            "# the budget, once more around all of it; swap would only hide that it does not fit",
            f"MemoryMax={self.budget_bytes}",
            "MemorySwapMax=0",
            "# the worker's own limit is a group below this one (DelegateSubgroup: systemd 254)",
            "Delegate=memory",
            "DelegateSubgroup=supervisor",
            "",
            "CacheDirectory=edgeladder",
            "Environment=XDG_CACHE_HOME=%C",
            "UMask=0027",
            "ProtectSystem=strict",
            "ProtectHome=read-only",
            "# folders that must be there before it starts",
            *(f"ReadWritePaths={_quoted(str(path))}" for path in self.writes),
            "" if any(map(_is_temporary, paths)) else "PrivateTmp=yes",
            "" if self.devices else "PrivateDevices=yes",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "ProtectClock=yes" if not self.devices else "",
            *(f"{name}=yes" for name in _ALWAYS),
            f"RestrictAddressFamilies=AF_UNIX{' AF_INET AF_INET6' if self.network else ''}",
            "" if self.network else "IPAddressDeny=any",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
        ]
        kept = [line for n, line in enumerate(lines) if line or lines[n + 1].startswith(("#", "["))
                or lines[n + 1].startswith("CacheDirectory")]  # fmt: skip
        return "\n".join(kept) + "\n"


_ALWAYS = (
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectHostname",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "LockPersonality",
)


def program() -> list[str]:
    """How to start this very installation, by whole paths."""
    beside = Path(sys.executable).parent / "edgeladder"
    found = str(beside) if beside.is_file() else shutil.which("edgeladder")
    if found is not None:
        return [os.path.abspath(found)]
    return [sys.executable, "-c", "from edgeladder.cli.app import run; run()"]


def _is_temporary(path: Path) -> bool:
    return any(Path(place) in path.parents for place in ("/tmp", "/var/tmp"))  # noqa: S108 - asked


def _quoted(word: str) -> str:
    """A word as systemd reads it: nothing in it is a specifier, a variable or an end."""
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    escaped = escaped.replace('"', '\\"').replace("\n", "\\n")
    plain = escaped.replace("/", "").replace("-", "").replace(".", "").replace("_", "").isalnum()
    return escaped if plain else f'"{escaped}"'


def _plain(text: str) -> str:
    return " ".join(text.replace("%", "%%").splitlines())
