"""Names of content: chained to all that comes before, and to the namespace."""

from __future__ import annotations

import itertools
import random

import pytest

from octavo.block_manager import hashing
from octavo.block_manager.hashing import Content, chain_hash, root_content


def chain(namespace: int, *blocks: bytes) -> Content:
    """The content of the last of these blocks."""
    content = root_content(namespace)
    for block in blocks:
        content = content.followed_by(block)
    return content


def test_a_hash_depends_on_parent_and_tokens() -> None:
    assert chain_hash(1, b"ab") == chain_hash(1, b"ab")
    assert chain_hash(1, b"ab") != chain_hash(2, b"ab")
    assert chain_hash(1, b"ab") != chain_hash(1, b"ac")


def test_equal_beginnings_have_equal_names() -> None:
    assert chain(-2, b"aa", b"bb") == chain(-2, b"aa", b"bb")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"aa", b"bb"), (b"aa", b"bc")),
        ((b"aa", b"bb"), (b"ab", b"bb")),
        ((b"aa", b"bb"), (b"bb", b"aa")),
        ((b"aa", b"bb"), (b"bb",)),
        ((b"aa", b"bb"), (b"aabb",)),
        ((b"ab", b"c"), (b"a", b"bc")),
    ],
)
def test_a_name_depends_on_every_token_and_every_end_of_a_block(
    one: tuple[bytes, ...], other: tuple[bytes, ...]
) -> None:
    assert chain(-2, *one).digest != chain(-2, *other).digest


def test_the_same_tokens_have_another_name_in_another_namespace() -> None:
    assert chain(-2, b"aa").digest != chain(-3, b"aa").digest
    assert chain(-2, b"aa", b"bb").digest != chain(-3, b"aa", b"bb").digest


def test_content_knows_its_namespace_and_what_comes_before() -> None:
    parent = chain(-7, b"aa")
    child = parent.followed_by(b"bb")
    assert child.parent == parent.digest
    assert child.namespace == parent.namespace == -7
    assert root_content(-7).parent == b""


def test_a_namespace_itself_has_a_name_like_any_content() -> None:
    roots = {root_content(namespace).digest for namespace in (-2, -3, -(2**31), 2**31)}
    assert len(roots) == 4
    assert root_content(-2) == root_content(-2)
    assert {len(digest) for digest in roots} == {16}


def test_no_two_of_many_contents_share_a_name() -> None:
    rng = random.Random(0)
    contents: dict[tuple[int, tuple[bytes, ...]], Content] = {(number, ()): root_content(number) for number in (-2, -3)}
    for _ in range(5_000):
        (namespace, history), parent = rng.choice(list(itertools.islice(contents.items(), 200)))
        tokens = bytes([rng.randrange(4)])
        contents[namespace, (*history, tokens)] = parent.followed_by(tokens)
    assert len({content.digest for content in contents.values()}) == len(contents)


def test_nobody_can_compute_a_name_without_this_processs_key(monkeypatch: pytest.MonkeyPatch) -> None:
    name = chain(-2, b"aa")
    monkeypatch.setattr(hashing, "_KEY", bytes(16))
    assert chain(-2, b"aa").digest != name.digest
