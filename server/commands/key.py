"""``octavo key``: makes an API key."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from octavo.config import DEFAULT_TENANT
from octavo.errors import ConfigError
from octavo.server.arguments import Parser
from octavo.server.keys import line_of, new_key


def main(arguments: Sequence[str]) -> int:
    """Shows a new key, once, on standard error, and prints its line for the file of keys."""
    parser = Parser("octavo key", "[--tenant NAME] [--admin]", "Makes an API key, and its line for --api-keys.")
    parser.add_argument("--tenant", default=DEFAULT_TENANT, help=f"whose key it is (default: {DEFAULT_TENANT})")
    parser.add_argument("--admin", action="store_true", help="the key may see what concerns all tenants")
    given = parser.parse(arguments)
    key = new_key()
    try:
        line = line_of(key, given.tenant, given.admin)
    except ConfigError as error:
        parser.error(str(error))
    print(f"the key, shown only now: {key}\nits line for --api-keys:", file=sys.stderr, flush=True)
    print(line)
    return 0
