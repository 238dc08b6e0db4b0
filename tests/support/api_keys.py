"""API keys of two tenants and of an administrator."""

from __future__ import annotations

import hashlib

from octavo.server.keys import Identity, Keys

ADA = "sk-test-key-of-ada"
GRACE = "sk-test-key-of-grace"
ADMIN = "sk-test-key-of-admin"
WRONG = "sk-test-key-of-nobody"

OWNERS = {ADA: Identity("ada"), GRACE: Identity("grace"), ADMIN: Identity("default", admin=True)}


def some_keys() -> Keys:
    """Keys as a server has them."""
    return Keys({hashlib.sha256(key.encode()).digest(): identity for key, identity in OWNERS.items()})


def bearer(key: str) -> dict[str, str]:
    """The header that OpenAI's clients send."""
    return {"authorization": f"Bearer {key}"}
