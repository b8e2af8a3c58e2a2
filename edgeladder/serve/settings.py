"""What the HTTP service allows, each limit once, with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of requests; what goes beyond is answered with one error, and the rest goes on."""

    body_bytes: int = 20_000_000  # a phone's largest JPEG has some 12 MB
    head_seconds: float = 10.0  # for a request's line and headers, from the first byte on
    body_seconds: float = 30.0  # for its body: 20 MB at 5 Mbit/s
    picture_seconds: float = 60.0  # of the worker over one picture
    waiting: int = 8  # pictures, the one that is looked at included; more get 503
    connections: int = 64
    drain_seconds: float = 10.0  # after SIGTERM, for what was asked before


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the service listens and by which names it may be called."""

    host: str = "127.0.0.1"
    port: int = 8765  # 0: any that is free
    names: tuple[str, ...] = field(default=())  # in the Host header, beside addresses
    certificate: str | None = None  # PEM file; None: no TLS
    key: str | None = None  # PEM file

    @property
    def scheme(self) -> str:
        """As in its address."""
        return "https" if self.certificate else "http"
