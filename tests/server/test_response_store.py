"""What is kept of each tenant's responses, and what makes room."""

from __future__ import annotations

import pytest

from octavo.errors import NotFoundError
from octavo.server.responses_api.store import ResponseStore, Stored


def kept(store: ResponseStore, tenant: str, ids: str) -> str:
    """Those of the ids that are there; asking counts as use."""
    found = ""
    for id in ids:
        try:
            store.get(tenant, id, param="id")
            found += id
        except NotFoundError:
            pass
    return found


def sized(size: int) -> Stored:
    return Stored(b"r", b"m" * (size - 1))


def test_the_least_recently_used_makes_room_by_count() -> None:
    store = ResponseStore(max_count=3, max_bytes=1000)
    for id in "abc":
        store.put("ada", id, sized(1))
    assert kept(store, "ada", "a") == "a"
    store.put("ada", "d", sized(1))
    assert kept(store, "ada", "abcd") == "acd"


def test_and_by_bytes() -> None:
    store = ResponseStore(max_count=100, max_bytes=10)
    for id in "abc":
        store.put("ada", id, sized(3))
    store.put("ada", "d", sized(4))
    assert kept(store, "ada", "abcd") == "bcd"
    store.delete("ada", "b", param="id")
    store.put("ada", "e", sized(3))
    assert kept(store, "ada", "abcde") == "cde"


def test_one_that_is_too_large_is_not_kept_and_drives_nobody_out() -> None:
    store = ResponseStore(max_count=100, max_bytes=10)
    store.put("ada", "a", sized(5))
    store.put("ada", "b", sized(11))
    assert kept(store, "ada", "ab") == "a"


def test_tenants_have_room_of_their_own() -> None:
    store = ResponseStore(max_count=1, max_bytes=10)
    store.put("ada", "a", sized(1))
    store.put("grace", "b", sized(1))
    assert (kept(store, "ada", "ab"), kept(store, "grace", "ab")) == ("a", "b")
    with pytest.raises(NotFoundError, match="no response 'a'"):
        store.delete("grace", "a", param="id")
    assert kept(store, "ada", "a") == "a"
