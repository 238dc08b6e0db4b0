"""PrefixCache: content finds blocks, and only exactly the right content does."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.block_manager.hashing import ChainHash, chain_hash
from octavo.block_manager.prefix_cache import Namespaces, PrefixCache


def content(*tokens: int) -> bytes:
    return np.array(tokens, dtype=np.int32).tobytes()


def colliding(parent: int, tokens: bytes) -> int:
    return 0


@pytest.fixture(params=[chain_hash, colliding], ids=["hash", "every-hash-collides"])
def cache(request: pytest.FixtureRequest) -> PrefixCache:
    hasher: ChainHash = request.param
    return PrefixCache(8, 2, hasher)


def test_content_that_was_inserted_is_found(cache: PrefixCache) -> None:
    assert cache.insert(3, -1, content(1, 2)) == 3
    assert cache.find(-1, content(1, 2)) == 3
    assert 3 in cache
    assert len(cache) == 1
    assert cache.check() == []


def test_other_content_is_not_found_even_if_hashes_collide(cache: PrefixCache) -> None:
    cache.insert(3, -1, content(1, 2))
    assert cache.find(-1, content(1, 3)) == 0
    assert cache.find(-1, content(2, 1)) == 0


def test_the_same_tokens_after_another_parent_are_other_content(cache: PrefixCache) -> None:
    cache.insert(3, -1, content(1, 2))
    cache.insert(4, 3, content(5, 6))
    assert cache.find(3, content(5, 6)) == 4
    assert cache.find(4, content(5, 6)) == 0
    assert cache.find(-1, content(5, 6)) == 0


def test_namespaces_do_not_see_each_other(cache: PrefixCache) -> None:
    cache.insert(3, -1, content(1, 2))
    assert cache.find(-2, content(1, 2)) == 0


def test_the_first_of_two_equal_blocks_stands_for_both(cache: PrefixCache) -> None:
    cache.insert(3, -1, content(1, 2))
    assert cache.insert(4, -1, content(1, 2)) == 3
    assert 4 not in cache
    assert len(cache) == 1


def test_a_block_has_one_content_at_a_time(cache: PrefixCache) -> None:
    cache.insert(3, -1, content(1, 2))
    with pytest.raises(AssertionError, match="block 3 is indexed already"):
        cache.insert(3, -1, content(7, 7))


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1)])
def test_blocks_are_forgotten_in_any_order(cache: PrefixCache, order: tuple[int, ...]) -> None:
    for block in (1, 2, 3):
        cache.insert(block, -1, content(block, block))
    for count, block in enumerate(order):
        cache.remove(block)
        assert block not in cache
        assert cache.find(-1, content(block, block)) == 0
        assert all(cache.find(-1, content(b, b)) == b for b in order[count + 1 :])
        assert cache.check() == []
    assert len(cache) == 0


def test_forgetting_what_is_not_known_is_our_bug(cache: PrefixCache) -> None:
    with pytest.raises(AssertionError, match="block 5 is not indexed"):
        cache.remove(5)


def test_a_block_tells_its_parent_and_tokens(cache: PrefixCache) -> None:
    cache.insert(3, -1, content(1, 2))
    cache.insert(4, 3, content(5, 6))
    assert (cache.parent_of(3), cache.parent_of(4), cache.parent_of(5)) == (-1, 3, 0)
    assert cache.tokens_of(4) == content(5, 6)


def test_a_hash_depends_on_everything_before_the_block() -> None:
    cache = PrefixCache(8, 2)
    for parent, block in ((-1, 1), (-2, 2)):
        cache.insert(block, parent, content(1, 2) if parent == -1 else content(3, 4))
        cache.insert(block + 2, block, content(5, 6))
    assert cache._hash[3] != cache._hash[4]


def test_check_names_a_block_whose_tokens_changed() -> None:
    cache = PrefixCache(8, 2)
    cache.insert(3, -1, content(1, 2))
    cache._tokens[3 * 8] = 9
    assert cache.check() == ["block 3's hash is not that of its tokens and parent"]


def test_check_names_a_block_that_no_bucket_reaches() -> None:
    cache = PrefixCache(8, 2)
    cache._parent[5] = -1
    assert cache.check() == ["indexed but unreachable, or reachable but not indexed: [5]"]


def test_check_compares_the_size() -> None:
    cache = PrefixCache(8, 2)
    cache.insert(3, -1, content(1, 2))
    cache._size = 2
    assert cache.check() == ["the index counts 2 blocks and holds 1"]


def test_a_salt_keeps_its_namespace() -> None:
    names = Namespaces(chain_hash)
    first = names.id_of("a")
    assert first < 0
    assert names.id_of("b") != first
    assert names.id_of("a") == first


def test_salts_without_blocks_are_forgotten_when_there_are_many() -> None:
    names = Namespaces(chain_hash)
    kept = names.id_of("kept")
    names.count(kept, +1)
    for number in range(3 * Namespaces._FORGET_ABOVE):
        names.id_of(f"salt {number}")
    assert len(names) <= Namespaces._FORGET_ABOVE
    assert names.id_of("kept") == kept


def test_a_forgotten_salts_namespace_is_never_used_again() -> None:
    names = Namespaces(chain_hash)
    ids = [names.id_of(f"salt {number}") for number in range(2 * Namespaces._FORGET_ABOVE)]
    assert len(set(ids)) == len(ids)
    assert names.id_of("salt 0") not in ids


def test_a_namespace_is_forgotten_only_when_its_last_block_is() -> None:
    cache = PrefixCache(8, 2)
    namespace = cache.namespaces.id_of("a")
    cache.insert(1, namespace, content(1, 1))
    cache.insert(2, namespace, content(2, 2))
    cache.remove(1)
    cache.namespaces._forget_empty()
    assert cache.namespaces.id_of("a") == namespace
    cache.remove(2)
    cache.namespaces._forget_empty()
    assert cache.namespaces.id_of("a") != namespace
