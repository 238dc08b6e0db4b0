"""PrefixCache: content finds blocks, and only exactly the right content does."""

from __future__ import annotations

import random

import numpy as np
import pytest
from blocks import Tokens, insert_run

from octavo.block_manager.hashing import ALL_BITS, Content, root_content
from octavo.block_manager.prefix_cache import Namespaces, PrefixCache


def content(*tokens: int) -> Tokens:
    return np.array(tokens, dtype=np.int32)


def insert(cache: PrefixCache, block: int, parent: int, tokens: Tokens) -> None:
    assert insert_run(cache, [block], parent, tokens) == (1, 0)


def find(cache: PrefixCache, parent: int, tokens: Tokens) -> int:
    """The block that holds what one block can hold, or the null block."""
    (block,) = cache.find_run(parent, tokens, len(tokens) // cache.block_size)[0].tolist() or [0]
    return int(block)


@pytest.fixture(params=[ALL_BITS, 0], ids=["hash", "every-hash-collides"])
def cache(request: pytest.FixtureRequest) -> PrefixCache:
    return PrefixCache(8, 2, request.param)


def test_content_that_was_inserted_is_found(cache: PrefixCache) -> None:
    insert(cache, 3, -1, content(1, 2))
    assert find(cache, -1, content(1, 2)) == 3
    assert 3 in cache
    assert len(cache) == 1
    assert cache.check() == []


def test_other_content_is_not_found_even_if_hashes_collide(cache: PrefixCache) -> None:
    insert(cache, 3, -1, content(1, 2))
    assert find(cache, -1, content(1, 3)) == 0
    assert find(cache, -1, content(2, 1)) == 0


def test_the_same_tokens_after_another_parent_are_other_content(cache: PrefixCache) -> None:
    insert(cache, 3, -1, content(1, 2))
    insert(cache, 4, 3, content(5, 6))
    assert find(cache, 3, content(5, 6)) == 4
    assert find(cache, 4, content(5, 6)) == 0
    assert find(cache, -1, content(5, 6)) == 0


def test_namespaces_do_not_see_each_other(cache: PrefixCache) -> None:
    insert(cache, 3, -1, content(1, 2))
    assert find(cache, -2, content(1, 2)) == 0


def test_the_first_of_two_equal_blocks_stands_for_both(cache: PrefixCache) -> None:
    insert(cache, 3, -1, content(1, 2))
    assert insert_run(cache, [4], -1, content(1, 2)) == (0, 3)
    assert 4 not in cache
    assert len(cache) == 1


def test_a_block_has_one_content_at_a_time(cache: PrefixCache) -> None:
    insert(cache, 3, -1, content(1, 2))
    assert insert_run(cache, [3], -1, content(7, 7)) == (1, 0)
    assert find(cache, -1, content(7, 7)) == 0
    assert find(cache, -1, content(1, 2)) == 3
    assert len(cache) == 1
    assert cache.check() == []


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_indexed_as_a_chain(cache: PrefixCache) -> None:
    assert insert_run(cache, [3, 1, 2], -1, content(1, 2, 3, 4, 5, 6)) == (3, 0)
    assert [cache.parent_of(block) for block in (3, 1, 2)] == [-1, 3, 1]
    assert find(cache, 1, content(5, 6)) == 2
    assert len(cache) == 3
    assert cache.check() == []


def test_a_run_ends_before_the_first_block_that_has_a_twin(cache: PrefixCache) -> None:
    insert_run(cache, [1, 2], -1, content(1, 2, 3, 4))
    insert_run(cache, [3], 2, content(7, 7))
    assert insert_run(cache, [4, 5], 2, content(5, 5, 7, 7)) == (2, 0)
    assert insert_run(cache, [1, 2, 6, 7], -1, content(1, 2, 3, 4, 7, 7, 8, 8)) == (2, 3)
    assert 6 not in cache
    assert 7 not in cache
    assert len(cache) == 5
    assert cache.check() == []


def test_a_run_goes_on_under_blocks_that_are_indexed_already(cache: PrefixCache) -> None:
    insert_run(cache, [1, 2], -1, content(1, 2, 3, 4))
    assert insert_run(cache, [1, 2, 3], -1, content(1, 2, 3, 4, 5, 6)) == (3, 0)
    assert find(cache, 2, content(5, 6)) == 3
    assert len(cache) == 3
    assert cache.check() == []


def test_an_empty_run_changes_nothing(cache: PrefixCache) -> None:
    assert insert_run(cache, [], -1, content()) == (0, 0)
    assert len(cache) == 0


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1)])
def test_blocks_are_forgotten_in_any_order(cache: PrefixCache, order: tuple[int, ...]) -> None:
    for block in (1, 2, 3):
        insert(cache, block, -1, content(block, block))
    for count, block in enumerate(order):
        cache.remove((block,))
        assert block not in cache
        assert find(cache, -1, content(block, block)) == 0
        assert all(find(cache, -1, content(b, b)) == b for b in order[count + 1 :])
        assert cache.check() == []
    assert len(cache) == 0


def test_forgetting_what_is_not_known_is_our_bug(cache: PrefixCache) -> None:
    with pytest.raises(AssertionError, match="block 5 is not indexed"):
        cache.remove((5,))


def test_a_block_tells_its_parent_and_tokens(cache: PrefixCache) -> None:
    insert(cache, 3, -1, content(1, 2))
    insert(cache, 4, 3, content(5, 6))
    assert (cache.parent_of(3), cache.parent_of(4), cache.parent_of(5)) == (-1, 3, 0)
    assert cache.tokens_of(4) == content(5, 6).tobytes()


def test_a_hash_depends_on_everything_before_the_block() -> None:
    cache = PrefixCache(8, 2)
    for parent, block in ((-1, 1), (-2, 2)):
        insert(cache, block, parent, content(1, 2) if parent == -1 else content(3, 4))
        insert(cache, block + 2, block, content(5, 6))
    assert cache._hash[3] != cache._hash[4]


def test_the_hash_of_a_chain_is_that_of_its_last_block(cache: PrefixCache) -> None:
    insert_run(cache, [1, 2], -2, content(1, 2, 3, 4))
    assert cache.hash_after(-2, content(1, 2)) == cache.hash_of(1)
    assert cache.hash_after(-2, content(1, 2, 3, 4)) == cache.hash_after(1, content(3, 4)) == cache.hash_of(2)


def test_a_hash_depends_on_the_namespace() -> None:
    cache = PrefixCache(8, 2)
    assert cache.hash_after(-2, content(1, 2)) != cache.hash_after(-3, content(1, 2))


def test_a_look_up_tells_the_hash_of_what_it_missed(cache: PrefixCache) -> None:
    insert_run(cache, [1, 2], -2, content(1, 2, 3, 4))
    blocks, missed = cache.find_run(-2, content(1, 2, 3, 4, 5, 6, 7, 8), 4)
    assert (blocks.tolist(), missed) == ([1, 2], cache.hash_after(2, content(5, 6)))
    assert cache.find_run(-2, content(1, 2), 1)[0].tolist() == [1]


def test_many_rows_are_indexed_at_once(cache: PrefixCache) -> None:
    # Rows 0 and 2 hold the same; row 3 goes on where it was; row 1 is not asked for.
    tables = np.array([[1, 2, 0], [3, 0, 0], [4, 5, 0], [6, 7, 8]], dtype=np.int32)
    token_ids = np.array([[1, 1, 2, 2, 0, 0], [9] * 6, [1, 1, 2, 2, 0, 0], [5, 5, 6, 6, 7, 7]], dtype=np.int32)
    insert(cache, 6, -3, content(5, 5))
    namespaces, published = np.array([-2, -2, -2, -3], dtype=np.int32), np.array([0, 0, 0, 1], dtype=np.int32)
    rows, ends = np.array([0, 2, 3], dtype=np.int32), np.array([2, 2, 3], dtype=np.int32)
    assert cache.publish(tables, token_ids, namespaces, published, rows, ends).tolist() == [2]
    assert published.tolist() == [2, 0, 0, 3]
    assert [cache.parent_of(block) for block in range(9)] == [0, -2, 1, 0, 0, 0, -3, 6, 7]
    assert cache.publish(tables, token_ids, namespaces, published, rows, ends).tolist() == [2]
    assert (len(cache), cache.check()) == (5, [])
    for block in (2, 1, 8, 7, 6):
        cache.remove((block,))
    assert cache.namespaces.others(0, 8) == []


# ── names that hold in every tier ───────────────────────────────────────────────────────────────────────────


def test_equal_chains_in_different_blocks_have_the_same_name() -> None:
    one, other = PrefixCache(8, 2), PrefixCache(8, 2)
    insert_run(one, [1, 2], -2, content(1, 2, 3, 4))
    insert_run(other, [7, 5], -2, content(1, 2, 3, 4))
    assert one.content_of(2) == other.content_of(5)
    assert one.content_of(1) == other.content_of(7)


def test_a_name_is_that_of_the_tokens_in_order(cache: PrefixCache) -> None:
    insert_run(cache, [3, 1], -2, content(1, 2, 3, 4))
    insert(cache, 2, -3, content(1, 2))
    assert cache.content_of(-2) == root_content(-2)
    first, second = content(1, 2).tobytes(), content(3, 4).tobytes()
    assert cache.content_of(2) == root_content(-3).followed_by(first)
    assert cache.content_of(3) == root_content(-2).followed_by(first)
    assert cache.content_of(1) == root_content(-2).followed_by(first).followed_by(second)


def test_a_block_that_holds_something_else_now_has_another_name(cache: PrefixCache) -> None:
    insert(cache, 3, -2, content(1, 2))
    before = cache.content_of(3)
    cache.remove((3,))
    insert(cache, 3, -2, content(5, 6))
    assert cache.content_of(3) == root_content(-2).followed_by(content(5, 6).tobytes()) != before


def test_naming_a_chains_last_block_names_each_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, computed, followed_by = PrefixCache(8, 2), list[bytes](), Content.followed_by
    insert_run(cache, [1, 2, 3], -2, content(1, 2, 3, 4, 5, 6))

    def compute(parent: Content, tokens: bytes) -> Content:
        computed.append(tokens)
        return followed_by(parent, tokens)

    monkeypatch.setattr(Content, "followed_by", compute)
    for block in (3, 2, 1, 3):
        cache.content_of(block)
    assert computed == [content(1, 2).tobytes(), content(3, 4).tobytes(), content(5, 6).tobytes()]


# ── descendants ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_follows_a_block_is_found_children_last() -> None:
    cache = PrefixCache(8, 2)
    insert_run(cache, [8, 5, 2], -2, content(1, 2, 3, 4, 5, 6))
    insert(cache, 1, 5, content(7, 7))
    insert(cache, 3, -2, content(9, 9))
    found = cache.descendants(5)
    assert found[0] == 5
    assert set(found) == {5, 2, 1}
    assert cache.descendants(3) == [3]


def test_what_belongs_to_a_namespace_is_found_children_last() -> None:
    cache = PrefixCache(8, 2)
    insert_run(cache, [8, 5, 2], -2, content(1, 2, 3, 4, 5, 6))
    insert_run(cache, [1, 3], -3, content(1, 2, 3, 4))
    assert cache.descendants(-2) == [8, 5, 2]
    assert cache.descendants(-3) == [1, 3]


def test_nothing_follows_what_is_not_indexed() -> None:
    cache = PrefixCache(8, 2)
    insert(cache, 3, -2, content(1, 2))
    assert cache.descendants(4) == []
    assert cache.descendants(-3) == []


@pytest.mark.parametrize("seed", range(10))
def test_descendants_of_random_trees_are_those_that_climbing_finds(seed: int) -> None:
    rng, size = random.Random(seed), 60
    cache = PrefixCache(size, 1)
    blocks = rng.sample(range(1, size + 1), rng.randint(1, size))
    parents: dict[int, int] = {}
    for block in blocks:
        # Mostly long chains: it is their length that climbing by powers of two has to get right.
        parents[block] = rng.choice([-2, -3, *parents] + 20 * list(parents)[-1:])
        insert(cache, block, parents[block], content(block))

    def ancestors(block: int) -> list[int]:
        line = [block]
        while line[-1] > 0:
            line.append(parents[line[-1]])
        return line

    for ancestor in (-2, -3, *blocks):
        found = cache.descendants(ancestor)
        assert sorted(found) == sorted(block for block in blocks if ancestor in ancestors(block))
        assert all(parents[block] not in found[index:] for index, block in enumerate(found))


# ── check sees what is wrong ────────────────────────────────────────────────────────────────────────────────


def test_check_names_a_block_whose_tokens_changed() -> None:
    cache = PrefixCache(8, 2)
    insert(cache, 3, -1, content(1, 2))
    cache._tokens[3, 0] = 9
    assert cache.check() == ["block 3's hash is not that of its tokens and parent"]


def test_check_names_a_block_that_no_bucket_reaches() -> None:
    cache = PrefixCache(8, 2)
    cache.indexed[5] = -1
    assert cache.check() == ["indexed but unreachable, or reachable but not indexed: [5]"]


def test_check_compares_the_size() -> None:
    cache = PrefixCache(8, 2)
    insert(cache, 3, -1, content(1, 2))
    cache._size = 2
    assert cache.check() == ["the index counts 2 blocks and holds 1"]


def test_check_names_a_block_in_another_blocks_bucket() -> None:
    cache = PrefixCache(8, 2, hash_mask=0)
    insert(cache, 3, -1, content(1, 2))
    cache._bucket[5], cache._bucket[0] = 3, 0
    assert cache.check() == ["block 3 hangs in bucket 5, not in its hash's"]


def test_check_names_a_chain_that_bites_its_tail() -> None:
    cache = PrefixCache(8, 2)
    insert(cache, 3, -1, content(1, 2))
    cache._chain[3] = 3
    assert cache.check() == ["block 3 is reached twice in the index"]


def test_check_names_a_block_that_outlived_its_parent() -> None:
    cache = PrefixCache(8, 2)
    insert_run(cache, [1, 2], -1, content(1, 2, 3, 4))
    cache.remove((1,))
    assert cache.check() == ["indexed blocks have outlived their parents: [2]"]


# ── namespaces ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_salt_keeps_its_namespace() -> None:
    names = Namespaces()
    first = names.id_of("a")
    assert first < 0
    assert names.id_of("b") != first
    assert names.id_of("a") == first


def test_salts_without_blocks_are_forgotten_when_there_are_many() -> None:
    names = Namespaces()
    kept = names.id_of("kept")
    names.count(kept, +1)
    for number in range(3 * Namespaces._FORGET_ABOVE):
        names.id_of(f"salt {number}")
    assert len(names) <= Namespaces._FORGET_ABOVE
    assert names.id_of("kept") == kept


def test_a_forgotten_salts_namespace_is_never_used_again() -> None:
    names = Namespaces()
    ids = [names.id_of(f"salt {number}") for number in range(2 * Namespaces._FORGET_ABOVE)]
    assert len(set(ids)) == len(ids)
    assert names.id_of("salt 0") not in ids


def test_a_namespace_is_forgotten_only_when_its_last_block_is() -> None:
    cache = PrefixCache(8, 2)
    namespace = cache.namespaces.id_of("a")
    insert(cache, 1, namespace, content(1, 1))
    insert(cache, 2, namespace, content(2, 2))
    cache.remove((1,))
    cache.namespaces._forget_empty()
    assert cache.namespaces.id_of("a") == namespace
    cache.remove((2,))
    cache.namespaces._forget_empty()
    assert cache.namespaces.id_of("a") != namespace


def test_the_other_namespaces_with_blocks_are_listed_the_youngest_first() -> None:
    names = Namespaces()
    first, second, third, empty = (names.id_of((0, salt)) for salt in "abcd")
    for namespace in (first, second, third):
        names.count(namespace, +1)
    assert names.others(second, 8) == [third, first]
    assert names.others(empty, 2) == [third, second]
    names.count(third, -1)
    assert names.others(empty, 8) == [second, first]


def test_a_tenants_namespaces_are_matched_by_tenant_or_by_salt_too() -> None:
    names = Namespaces()
    ids = {key: names.id_of(key) for key in [(0, "a"), (0, "b"), (1, "a")]}
    assert names.matching(0, None) == [(ids[0, "a"], (0, "a")), (ids[0, "b"], (0, "b"))]
    assert names.matching(0, "b") == [(ids[0, "b"], (0, "b"))]
    assert names.matching(1, "b") == []
    assert len(names) == 3


def test_a_renewed_key_has_a_namespace_that_was_never_used() -> None:
    names = Namespaces()
    ids = [names.id_of(("tenant", "a")), names.id_of(("tenant", "b"))]
    names.renew(("tenant", "a"))
    assert names.matching("tenant", "a") == []
    assert names.id_of(("tenant", "a")) not in ids
    assert names.id_of(("tenant", "b")) == ids[1]
