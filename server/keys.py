"""API keys: who may use the server, and as which tenant.

A file has one key a line; a comment begins with ``#``:

    sha256:5e88…  tenant=chat  admin    # what `octavo key --tenant chat --admin` prints
    sk-a-key-in-plain-text  tenant=batch

The environment variable ``OCTAVO_API_KEY`` has keys with commas between them, ``KEY`` or ``KEY=TENANT``; none of them
is admin. Whoever names no tenant belongs to the default one.

Only digests are kept. Plain SHA-256 is enough for them, since keys are long and random, unlike passwords.

A key stands for its tenant: keys of one tenant share its queue, its quotas and its prefix cache. Keys of different
tenants never share a KV block, nor can they tell by an answer's time or by its ``cached_tokens`` what another has
asked: the engine's prefix cache keeps (tenant, ``cache_salt``) apart as two values. So a client's ``cache_salt``
divides its own tenant's cache further, whatever it says, and no secret has to be mixed into it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo.config import DEFAULT_TENANT, TenantConfig
from octavo.errors import ConfigError

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE: Final = "OCTAVO_API_KEY"
MIN_KEY_CHARS: Final = 16

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_COMMENT: Final = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class Identity:
    """Who sends a request.

    Attributes:
        tenant: Whose weights, quotas and prefix cache apply.
        admin: May see, and do, what concerns all tenants.
    """

    tenant: str = DEFAULT_TENANT
    admin: bool = False


class Keys:
    """All keys of a server.

    Args:
        identities: SHA-256 digest of a key → whose it is.
    """

    def __init__(self, identities: dict[bytes, Identity]) -> None:
        self._identities = identities

    def __len__(self) -> int:
        return len(self._identities)

    @property
    def tenants(self) -> list[str]:
        """The tenants that have a key."""
        return sorted({identity.tenant for identity in self._identities.values()})

    def identify(self, key: bytes) -> Identity | None:
        """Whose key it is; None if nobody's. Takes as long for one key as for another."""
        digest = hashlib.sha256(key).digest()
        found = None
        for known, identity in self._identities.items():
            if hmac.compare_digest(known, digest):
                found = identity
        return found


def new_key() -> str:
    """A key that nobody can guess."""
    return f"sk-octavo-{secrets.token_urlsafe(32)}"


def line_of(key: str, tenant: str, admin: bool) -> str:
    """A key's line in the file: its digest, not the key.

    Raises:
        ConfigError: The tenant's name is malformed.
    """
    TenantConfig(name=tenant)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"sha256:{digest} tenant={tenant}{' admin' if admin else ''}"


def read_keys(file: str | None, environment: str | None, tenants: Collection[str]) -> Keys | None:
    """Reads all keys.

    Args:
        file: Where they are. environment: the value of ``OCTAVO_API_KEY``.
        tenants: The names of the tenants there are.

    Returns:
        None if neither is given: the server is open.

    Raises:
        ConfigError: The file cannot be read, or something in it is not understood; names the line, never a key.
    """
    if file is None and environment is None:
        return None
    identities: dict[bytes, Identity] = {}
    for where, digest, identity in (*_from_file(file), *_from_environment(environment)):
        if digest in identities:
            raise ConfigError(f"{where}: this key is there already")
        if identity.tenant not in tenants:
            known = ", ".join(sorted(tenants))
            raise ConfigError(f"{where}: there is no tenant {identity.tenant!r}; --tenants has {known}")
        identities[digest] = identity
    if not identities:
        raise ConfigError(f"{file or ENVIRONMENT_VARIABLE} has no API keys; `octavo key` makes one")
    return Keys(identities)


_Entry = tuple[str, bytes, Identity]


def _from_file(file: str | None) -> Iterator[_Entry]:
    if file is None:
        return
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        mode = Path(file).stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-keys: cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    plain = False
    for number, line in enumerate(lines, 1):
        if words := _COMMENT.sub("", line).split():
            where = f"{file}, line {number}"
            plain = plain or not words[0].startswith("sha256:")
            yield where, _digest(words[0], where), _identity(words[1:], where)
    # Of digests nothing can be learnt, but whoever can write to them lets himself in.
    if mode & (0o077 if plain else 0o022):
        logger.warning("%s can be %s by other users; chmod 600 it", file, "read or changed" if plain else "changed")


def _from_environment(value: str | None) -> Iterator[_Entry]:
    for number, entry in enumerate((value or "").split(","), 1):
        if entry.strip():
            where = f"{ENVIRONMENT_VARIABLE}, key {number}"
            key, _, tenant = entry.strip().rpartition("=")
            if not key or not tenant:  # no tenant; and what is padded as base64 is ends with = itself
                key, tenant = entry.strip(), DEFAULT_TENANT
            yield where, _digest(key, where), Identity(tenant)


def _identity(marks: list[str], where: str) -> Identity:
    tenants = [mark.removeprefix("tenant=") for mark in marks if mark.startswith("tenant=")]
    admin = marks.count("admin")
    if len(tenants) > 1 or admin > 1 or len(tenants) + admin < len(marks):
        # Without the words themselves: one of them may be a key in the wrong place.
        raise ConfigError(f"{where} is not understood; write it as KEY tenant=NAME admin, the latter two if need be")
    return Identity(tenants[0] if tenants else DEFAULT_TENANT, bool(admin))


def _digest(key: str, where: str) -> bytes:
    if key.startswith("sha256:"):
        match = _DIGEST.fullmatch(key)
        if match is None:
            raise ConfigError(f"{where}: after sha256: come 64 lower-case hexadecimal digits")
        return bytes.fromhex(match[1])
    if len(key) < MIN_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{where}: a key has at least {MIN_KEY_CHARS} printable ASCII characters; `octavo key` makes one"
        )
    return hashlib.sha256(key.encode()).digest()
