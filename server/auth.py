"""Who may do what: deny by default.

Without API keys the server is open to whoever reaches it. With them every request needs one, to routes that do not
exist as well, except to those in `PUBLIC`; and what tells of all tenants needs one that is marked admin.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import AuthenticationError, ForbiddenError, NotFoundError
from octavo.server.keys import Identity, Keys

# What balancers and probes ask, which have no key; and the live map's page, which holds no data and asks for a key.
PUBLIC: Final = frozenset(
    {
        "/health",
        "/ready",
        "/version",
        "/ui",
        "/ui/colours.js",
        "/ui/figures.js",
        "/ui/lists.js",
        "/ui/main.js",
        "/ui/model.js",
        "/ui/recording.js",
        "/ui/stream.js",
        "/ui/style.css",
        "/ui/tier_map.js",
        "/ui/tooltip.js",
        "/ui/words.js",
    }
)
METRICS: Final = "/metrics"
# The metrics name the tenants, and their counts of cache misses tell whether another tenant has asked the same.
ADMIN: Final = frozenset({METRICS})
# Whatever is below these, be it there or not: the live map tells of all tenants' requests.
ADMIN_FOLDERS: Final = ("/ui/",)

ANONYMOUS: Final = Identity()


class Authenticator:
    """Finds out whose each request is, before its body is read.

    Args:
        app: What comes next; there `identity_of` answers.
        keys: None for a server that is open.
        public: Paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, public: frozenset[str] = PUBLIC) -> None:
        self._app = app
        self._keys = keys
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope.setdefault("state", {})["identity"] = self._admit(scope)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Identity:
        path = scope["path"]
        if self._keys is None or path in self._public:
            return ANONYMOUS
        identity = self._keys.identify(_given_key(scope))
        if identity is None:
            raise AuthenticationError("the API key is not known to this server")
        if not path.isprintable():
            # Routes match with a newline behind them, too, and would then not be the ones in ADMIN.
            raise NotFoundError(f"no such route: {path!r}")
        if (path in ADMIN or path.startswith(ADMIN_FOLDERS)) and not identity.admin:
            raise ForbiddenError(f"{path} needs an API key that is marked admin", code="admin_key_required")
        return identity


def identity_of(connection: HTTPConnection) -> Identity:
    """Whose request it is."""
    identity: Identity = connection.state.identity
    return identity


def _given_key(scope: Scope) -> bytes:
    keys = set()
    for name, value in scope["headers"]:
        scheme, _, rest = value.partition(b" ")
        if name == b"x-api-key":
            keys.add(value.strip())
        elif name == b"authorization" and scheme.lower() == b"bearer":
            keys.add(rest.strip())
    if not keys:
        raise AuthenticationError("an API key is needed; send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`")
    if len(keys) > 1:
        # Which one counts would be a matter of taste, and a proxy may have another than we.
        raise AuthenticationError("the request has several different API keys; send one")
    key: bytes = keys.pop()
    return key
