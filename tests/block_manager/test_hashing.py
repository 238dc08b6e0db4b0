"""Names of content: chained to all that comes before, and to the namespace."""

from __future__ import annotations

import ast
import itertools
import os
import random
import struct
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from octavo.block_manager import hashing, loops
from octavo.block_manager.hashing import ALL_BITS, Content, new_hasher, root_content


def chain(namespace: int, *blocks: bytes) -> Content:
    """The content of the last of these blocks."""
    content = root_content(namespace)
    for block in blocks:
        content = content.followed_by(block)
    return content


HASHER = new_hasher()


def hash_of(parent: int, *tokens: int, hasher: npt.NDArray[np.uint64] = HASHER) -> int:
    """The hash of one block."""
    found: int = loops.chain_hash(hasher, parent, np.array(tokens, dtype=np.int32), len(tokens))
    return found


def test_a_hash_depends_on_parent_and_tokens() -> None:
    assert hash_of(1, 7, 8) == hash_of(1, 7, 8)
    assert len({hash_of(1, 7, 8), hash_of(2, 7, 8), hash_of(1, 7, 9), hash_of(1, 8, 7), hash_of(1, 7, 8, 0)}) == 5


def test_a_hash_is_chained_to_the_one_before() -> None:
    tokens = np.arange(7, dtype=np.int32)
    assert loops.chain_hash(HASHER, -2, tokens, 3) == hash_of(hash_of(-2, 0, 1, 2), 3, 4, 5)
    assert loops.chain_hash(HASHER, -2, tokens[:2], 3) == -2


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes bytes in another way")
def test_hashes_are_those_of_pythons_siphash() -> None:
    # Without randomisation Python's key is 0.
    blocks = [(-2, [1]), (-(2**62), [0, 2**31 - 1]), (7, [5, 6, 7]), (2**62, list(range(16)))]
    packed = [struct.pack(f"<q{len(tokens)}i", parent, *tokens) for parent, tokens in blocks]
    command = [sys.executable, "-c", f"print([hash(block) for block in {packed}])"]
    pythons = subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": "0"}, text=True)
    no_key = np.array([0, 0, ALL_BITS], dtype=np.uint64)
    assert [hash_of(parent, *tokens, hasher=no_key) for parent, tokens in blocks] == ast.literal_eval(pythons)


def test_nobody_can_compute_a_hash_without_the_key() -> None:
    assert hash_of(-2, 1, 2, hasher=new_hasher()) != hash_of(-2, 1, 2)


def test_a_mask_keeps_some_bits_of_a_hash() -> None:
    masked = HASHER.copy()
    masked[2] = 0xFF
    assert hash_of(-2, 1, 2, hasher=masked) == hash_of(-2, 1, 2) & 0xFF


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
