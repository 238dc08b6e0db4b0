"""What is done to every block or token of a run, compiled: free lists, reference counts, hashes, the content index.

A prompt of 32,768 tokens has 2,048 blocks. Python takes about a microsecond for each of them in each of these loops,
numba some ten nanoseconds. The arrays belong to `FreeList`, `BlockPool` and `PrefixCache`, which say what they mean;
nothing is checked here that their callers have checked. Signatures are declared, so that everything is compiled, or
read from numba's cache, when the module is loaded: no request waits for it. Results go into arrays of the caller's:
numba takes a microsecond to wrap one of its own.

Of a free list's ``links``, int32 ``[2, num_blocks + 1]``, the first row leads from each free block to the next one and
the second to the one before; the null block's are the list's ends.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NULL_BLOCK = 0
# What a block that is not in a free list links to; no block has a negative id.
ABSENT = -1

_NEXT, _PREVIOUS = 0, 1

# Rows of ``ages``, uint32 [3, num_blocks + 1]: when a block was taken and when it lost its last owner, in milliseconds
# that wrap around after 49 days, and how often somebody came to share it since it was taken.
TAKEN, IDLE, SHARES = 0, 1, 2

# Rows of ``spans``, int64 [3, number of bounds + 2]: how long blocks lived (from taken to given up), how long they had
# been idle when they were given up, and for how long when somebody came to share them again. Each row has a count for
# what is at most each bound, in milliseconds, one for what exceeds them all, and their sum.
LIFETIME, IDLE_TIME, REUSE_GAP = 0, 1, 2
SPAN_BOUNDS = (
    10,
    50,
    100,
    500,
    1_000,
    5_000,
    10_000,
    30_000,
    60_000,
    300_000,
    600_000,
    1_800_000,
    3_600_000,
    21_600_000,
    86_400_000,
)
_BOUNDS = np.array(SPAN_BOUNDS, dtype=np.uint32)

# Made part of whoever calls it: a call counts each array's references up and down, which takes as long as the work.
_helper = njit(cache=True, forceinline=True)


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────


@njit("int64(int32[::1], int64)", cache=True)
def find_outside(tokens, vocab_size):
    """The first place whose token is not in ``[0, vocab_size)``; −1 if there is none."""
    # All of them first, with no way out: several are compared at a time.
    outside = 0
    for token in tokens:
        outside |= (token < 0) | (token >= vocab_size)
    if outside:
        for i in range(len(tokens)):
            if tokens[i] < 0 or tokens[i] >= vocab_size:
                return i
    return -1


# ── free list and reference counts ────────────────────────────────────────────────────────────────────────────


@_helper
def _link(links, block, before, after):
    links[_PREVIOUS, block], links[_NEXT, block] = before, after
    links[_NEXT, before] = block
    links[_PREVIOUS, after] = block


@njit("void(int32[:, ::1], int64)", cache=True)
def unlink(links, block):
    """Takes a block out of the list, wherever it stands."""
    before, after = links[_PREVIOUS, block], links[_NEXT, block]
    links[_NEXT, before] = after
    links[_PREVIOUS, after] = before
    links[_NEXT, block] = ABSENT


@njit("void(int32[:, ::1], int64)", cache=True)
def link_first(links, block):
    """Puts a block at the list's head."""
    _link(links, block, NULL_BLOCK, links[_NEXT, NULL_BLOCK])


@njit("void(int32[:, ::1], int64)", cache=True)
def link_last(links, block):
    """Puts a block at the list's tail."""
    _link(links, block, links[_PREVIOUS, NULL_BLOCK], NULL_BLOCK)


@njit("void(int32[:, ::1], int32[::1])", cache=True)
def pop(links, blocks):
    """Takes as many blocks from the list's head as find room in ``blocks``."""
    for i in range(len(blocks)):
        blocks[i] = links[_NEXT, NULL_BLOCK]
        unlink(links, blocks[i])


@_helper
def _observe(spans, row, began, now):
    """Counts a time that ends now."""
    span = np.uint32(now - began)
    spans[row, np.searchsorted(_BOUNDS, span)] += 1
    spans[row, -1] += span


_POOL = "int32[:, ::1], int32[::1], int32[::1], uint32[:, ::1], int64[:, ::1], uint32, int32[::1]"


@njit(f"int64({_POOL})", cache=True)
def take(links, owners, indexed, ages, spans, now, blocks):
    """`pop`, and gives them one owner; returns how many of them are indexed: their content has to be given up."""
    pop(links, blocks)
    evicted = 0
    for block in blocks:
        owners[block] = 1
        if indexed[block]:
            evicted += 1
            _observe(spans, LIFETIME, ages[TAKEN, block], now)
            _observe(spans, IDLE_TIME, ages[IDLE, block], now)
        ages[TAKEN, block], ages[SHARES, block] = now, 0
    return evicted


@njit(f"UniTuple(int64, 3)({_POOL})", cache=True)
def share(links, owners, indexed, ages, spans, now, blocks):
    """Adds an owner to each block; those that had none leave the list.

    Returns:
        How many had none, how many had one, and a block at which it ended because it had none and is not indexed;
        `ABSENT` if there is none.
    """
    idle = single = 0
    for block in blocks:
        if owners[block] == 0:
            if not indexed[block]:
                return idle, single, block
            unlink(links, block)
            _observe(spans, REUSE_GAP, ages[IDLE, block], now)
            idle += 1
        elif owners[block] == 1:
            single += 1
        owners[block] += 1
        ages[SHARES, block] += np.uint32(1)
    return idle, single, ABSENT


@njit(f"UniTuple(int64, 4)({_POOL})", cache=True)
def release(links, owners, indexed, ages, spans, now, blocks):
    """Takes an owner from each block, the last one first. Who has none left goes to the tail if indexed, else the head.

    Returns:
        How many have gone to the tail and to the head, how many have one owner left, and a block at which it ended
        because it had none to lose; `ABSENT` if there is none.
    """
    cached = blank = single = 0
    for i in range(len(blocks) - 1, -1, -1):
        block = blocks[i]
        if owners[block] <= 0:
            return cached, blank, single, block
        owners[block] -= 1
        if owners[block] == 1:
            single += 1
        elif owners[block] == 0 and indexed[block]:
            link_last(links, block)
            cached += 1
            ages[IDLE, block] = now
        elif owners[block] == 0:
            link_first(links, block)
            _observe(spans, LIFETIME, ages[TAKEN, block], now)
            blank += 1
    return cached, blank, single, ABSENT


# ── hashes ────────────────────────────────────────────────────────────────────────────────────────────────────


@_helper
def _rotated(word, bits):
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@_helper
def _sip_round(a, b, c, d):
    a += b
    b = _rotated(b, 13) ^ a
    a = _rotated(a, 32)
    c += d
    d = _rotated(d, 16) ^ c
    a += d
    d = _rotated(d, 21) ^ a
    c += b
    b = _rotated(b, 17) ^ c
    c = _rotated(c, 32)
    return a, b, c, d


@_helper
def _absorb(a, b, c, d, word):
    a, b, c, d = _sip_round(a, b, c, d ^ word)
    return a ^ word, b, c, d


@_helper
def _hash(hasher, parent, tokens, begin, end):
    """SipHash-1-3 (Aumasson and Bernstein, 2012) of ``parent`` and then of these tokens, little-endian; masked."""
    key, other, mask = hasher
    a, b = key ^ np.uint64(0x736F6D6570736575), other ^ np.uint64(0x646F72616E646F6D)
    c, d = key ^ np.uint64(0x6C7967656E657261), other ^ np.uint64(0x7465646279746573)
    a, b, c, d = _absorb(a, b, c, d, np.uint64(parent))
    for i in range(begin, end - 1, 2):
        low, high = np.uint64(np.uint32(tokens[i])), np.uint64(np.uint32(tokens[i + 1]))
        a, b, c, d = _absorb(a, b, c, d, low | (high << np.uint64(32)))
    last = np.uint64(8 + 4 * (end - begin)) << np.uint64(56)
    if (end - begin) % 2:
        last |= np.uint64(np.uint32(tokens[end - 1]))
    a, b, c, d = _absorb(a, b, c, d, last)
    a, b, c, d = _sip_round(a, b, c ^ np.uint64(0xFF), d)
    a, b, c, d = _sip_round(a, b, c, d)
    a, b, c, d = _sip_round(a, b, c, d)
    return np.int64((a ^ b ^ c ^ d) & mask)


@njit("int64(uint64[::1], int64, int32[::1], int64)", cache=True)
def chain_hash(hasher, parent, tokens, block_size):
    """The hash of the last of some full blocks; ``parent`` is the hash before the first."""
    for begin in range(0, len(tokens) - block_size + 1, block_size):
        parent = _hash(hasher, parent, tokens, begin, begin + block_size)
    return parent


# ── the content index ─────────────────────────────────────────────────────────────────────────────────────────
#
# ``bucket`` int32 [a power of two], ``chain`` and ``parents`` int32, ``hashes`` int64 [num_blocks + 1], and
# ``contents`` int32 [num_blocks + 1, block_size]; see `octavo.block_manager.prefix_cache`.

_INDEX = "int32[::1], int32[::1], int64[::1], int32[::1], int32[:, ::1]"


# Tokens are passed as an array and where they begin in it: a slice would cost more than comparing it.


@_helper
def _holds(contents, block, tokens, begin):
    for i in range(contents.shape[1]):  # noqa: SIM110 - a generator would not be compiled
        if contents[block, i] != tokens[begin + i]:
            return False
    return True


@_helper
def _search(bucket, chain, hashes, parents, contents, found, parent, tokens, begin):
    """The block with this hash that holds these tokens after this parent, or the null block."""
    block = bucket[found & (len(bucket) - 1)]
    while block != NULL_BLOCK:
        if hashes[block] == found and parents[block] == parent and _holds(contents, block, tokens, begin):
            break
        block = chain[block]
    return block


@njit(f"UniTuple(int64, 2)({_INDEX}, uint64[::1], int64, int32[::1], int32[::1])", cache=True)
def find_run(bucket, chain, hashes, parents, contents, hasher, parent, tokens, blocks):
    """The blocks that hold these tokens, one after another from ``parent`` on, up to the first that none holds.

    Returns:
        How many ``blocks`` there are, and the hash of what the first missing one would hold; 0 if none is missing.
    """
    size = contents.shape[1]
    found = hashes[parent] if parent > 0 else parent
    for i in range(len(blocks)):
        found = _hash(hasher, found, tokens, i * size, (i + 1) * size)
        block = _search(bucket, chain, hashes, parents, contents, found, parent, tokens, i * size)
        if block == NULL_BLOCK:
            return i, found
        blocks[i] = parent = block
    return len(blocks), 0


@_helper
def _insert_run(bucket, chain, hashes, parents, contents, hasher, blocks, parent, tokens):
    """Indexes blocks that follow one another, up to the first whose content another block stands for.

    Returns:
        How many of the blocks are indexed now, how many of those were not before, and that other block.
    """
    inserted = 0
    size = contents.shape[1]
    # All hashes first: so the processor reads many buckets, none of which it has at hand, at the same time.
    found = np.empty(len(blocks), dtype=np.int64)
    before = hashes[parent] if parent > 0 else parent
    for i in range(len(blocks)):
        found[i] = before = _hash(hasher, before, tokens, i * size, (i + 1) * size)
    childless = False  # what was not indexed until now has no indexed children, so what follows it has no twin
    for i in range(len(blocks)):
        block = blocks[i]
        if parents[block] != 0:
            childless = False
        else:
            if not childless:
                twin = _search(bucket, chain, hashes, parents, contents, found[i], parent, tokens, i * size)
                if twin != NULL_BLOCK:
                    return i, inserted, twin
            childless = True
            slot = found[i] & (len(bucket) - 1)
            hashes[block], parents[block] = found[i], parent
            for j in range(size):
                contents[block, j] = tokens[i * size + j]
            chain[block], bucket[slot] = bucket[slot], block
            inserted += 1
        parent = block
    return len(blocks), inserted, NULL_BLOCK


_ROWS = "int32[::1], int32[::1]"


@njit(
    f"UniTuple(int64, 3)({_INDEX}, uint64[::1], int32[:, ::1], int32[::1], {_ROWS}, int64, int64)",
    cache=True,
)
def publish_row(bucket, chain, hashes, parents, contents, hasher, tables, tokens, namespaces, published, row, end):
    """Indexes a row's blocks up to index ``end``, from where it has got to before.

    They are taken up to the first whose content another block stands for.

    Args:
        tables: Block tables. tokens: the row's.
        namespaces: Per row. published: per row, its leading blocks that are indexed; it is brought up to date.

    Returns:
        How many blocks were indexed, whether a block that follows a namespace is one of them, and that other block.
    """
    first, size = published[row], contents.shape[1]
    if end <= first:
        return 0, 0, NULL_BLOCK
    parent = tables[row, first - 1] if first else namespaces[row]
    blocks = tables[row, first:end]
    begins = first == 0 and parents[blocks[0]] == 0
    count, inserted, twin = _insert_run(
        bucket, chain, hashes, parents, contents, hasher, blocks, parent, tokens[first * size : end * size]
    )
    published[row] = first + count
    return inserted, 1 if begins and count else 0, twin


@njit(
    f"int64({_INDEX}, uint64[::1], int32[:, ::1], int32[:, ::1], {_ROWS}, int32[::1], int32[::1], int32[::1])",
    cache=True,
)
def publish(
    bucket, chain, hashes, parents, contents, hasher, tables, token_ids, namespaces, published, rows, ends, results
):
    """`publish_row` for many rows.

    Args:
        rows: Which. ends: for each, the index up to which its blocks are complete.
        results: Is told for each: 1 if a block that follows a namespace was indexed, 2 if it ended at one that has a
            twin, 3 for both.

    Returns:
        How many blocks were indexed.
    """
    total = 0
    for i in range(len(rows)):
        inserted, begins, twin = publish_row(
            bucket,
            chain,
            hashes,
            parents,
            contents,
            hasher,
            tables,
            token_ids[rows[i]],
            namespaces,
            published,
            rows[i],
            ends[i],
        )
        results[i] = begins + (2 if twin != NULL_BLOCK else 0)
        total += inserted
    return total


@njit("UniTuple(int64, 2)(int32[::1], int32[::1], int64[::1], int32[::1], int32[::1], int32[::1])", cache=True)
def remove(bucket, chain, hashes, parents, blocks, namespaces):
    """Takes blocks out of the index.

    Args:
        namespaces: As many as blocks; is told those that the blocks which begin a prompt belong to.

    Returns:
        How many of those there are, and a block at which it ended because it is not indexed; `ABSENT` if there is none.
    """
    first = 0
    for block in blocks:
        if parents[block] == 0:
            return first, block
        if parents[block] < 0:
            namespaces[first] = parents[block]
            first += 1
        slot = hashes[block] & (len(bucket) - 1)
        if bucket[slot] == block:
            bucket[slot] = chain[block]
        else:
            other = bucket[slot]
            while chain[other] != block:
                other = chain[other]
            chain[other] = chain[block]
        parents[block] = 0
    return first, ABSENT
