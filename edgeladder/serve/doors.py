"""Who may come in: the Host header, where a page comes from, the token.

Without a token the service trusts everybody who reaches it, so it listens on loopback only, and two
ways by which a web page of somebody else could reach it there are closed: a name that was pointed
to 127.0.0.1 (DNS rebinding: the Host header is then that name), and a form or script on another
page (the Origin header is then that page's; browsers send it with every POST).
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.requests import Request

from edgeladder.serve.replies import ReplyError
from edgeladder.serve.settings import Address
from edgeladder.serve.token import allows

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
OPEN = frozenset(
    {"/", "/page.js", "/page.css", "/icon.svg", "/health"}
)  # hold nothing that a token guards


class Doors:
    """The three questions asked of every request before anything of its body is read."""

    def __init__(self, address: Address, token: str | None):
        self._scheme = address.scheme
        self._token = token
        self._names = {"localhost", *(name.lower() for name in address.names)}
        if not is_loopback(address.host):
            own = socket.gethostname().lower()
            self._names |= {own, f"{own.partition('.')[0]}.local", address.host.lower()}

    @property
    def asks(self) -> bool:
        """Whether a token is needed."""
        return self._token is not None

    def check(self, request: Request) -> None:
        """Let a request in.

        Raises:
            ReplyError: 400, 401, 403 or 421.
        """
        host = request.headers.get("host")
        if host is None or len(request.headers.getlist("host")) != 1:
            raise ReplyError(400, "a request needs one Host header", kind="ConfigError")
        if not self._is_ours(host):
            raise ReplyError(
                421,
                "this service does not go by the name in the Host header",
                remedy="call it by its address, or start it with --name NAME",
                kind="ConfigError",
            )
        if request.method not in ("GET", "HEAD"):
            self._check_origin(request, host)
        if self._token is None or request.url.path in OPEN:
            return
        if not allows(self._token, request.headers.get("authorization")):
            error = ReplyError(
                401,
                "the token is missing or wrong",
                remedy="send the header `Authorization: Bearer TOKEN`; the service printed the "
                "token when it started",
                kind="ConfigError",
            )
            error.headers["WWW-Authenticate"] = 'Bearer realm="edgeladder"'
            raise error

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.lower().rstrip(".") in self._names:
            return True
        try:
            ipaddress.ip_address(name)  # no name that could be pointed here
        except ValueError:
            return False
        return True

    def _check_origin(self, request: Request, host: str) -> None:
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        ours = origin is None or origin.lower() == f"{self._scheme}://{host}".lower()
        if not ours or site not in ("same-origin", "none"):
            raise ReplyError(
                403,
                "a page of another site may not ask here",
                remedy="use this service's own page, or a program",
                kind="ConfigError",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
