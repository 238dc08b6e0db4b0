"""Which names the server answers to, and whom it lets in without a key.

Against DNS rebinding: a web page has its own name point to this machine, and then the browser takes the server for a
part of that page's site, which CORS does not concern. The Host header betrays it, since it is that name. It cannot be
an IP address, so these need no listing. A server with API keys has nothing for a page that does not know one.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.config import ServerConfig
from octavo.errors import ConfigError, ForbiddenError
from octavo.server.errors import error_response
from octavo.server.keys import Keys

_HOST: Final = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<name>[^:]*))(?::\d*)?")


class HostGuard:
    """Refuses requests to names that are not this server's.

    Args:
        app: What comes next.
        names: This server's, in lower case.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if len(hosts) <= 1 and all(map(self._is_ours, hosts)):
            await self._app(scope, receive, send)
            return
        shown = ", ".join(repr(host[:80]) for host in hosts)
        error = ForbiddenError(
            f"this server is not called {shown}; --allowed-hosts can allow that name", code="host_not_allowed"
        )
        await error_response(error, scope)(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        return (match["name"] or "").lower() in self._names or _is_ip(match["ipv6"] or match["name"])


def names_of(config: ServerConfig, keys: Keys | None) -> frozenset[str] | None:
    """The names that a server answers to besides its IP addresses; None for any."""
    given = config.allowed_hosts
    if given is None and keys is not None:
        given = ("*",)
    if given is not None and "*" in given:
        return None
    return frozenset(name.lower() for name in ("localhost", config.host, *(given or ())))


def check_exposure(config: ServerConfig, keys: Keys | None) -> None:
    """Refuses to open a server without keys to other machines unless that is meant.

    Raises:
        ConfigError: It is not said to be meant.
    """
    if keys is None and not config.allow_anonymous and not _is_loopback(config.host):
        raise ConfigError(
            f"--host {config.host} lets other machines use this server, and there are no API keys. "
            "Make one with `octavo key >> keys` and add --api-keys keys; or let everybody in with --allow-anonymous"
        )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
