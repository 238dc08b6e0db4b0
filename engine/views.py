"""What the front end is shown of the engine's insides when it asks: the block map, one block, one request's story.

The questions are answered between two steps; nothing of it is kept up to date while nobody asks, except for the few
events of a request's story. All times are seconds.
"""

from __future__ import annotations

from typing import Any

import msgspec

# In `TierCells.owners`: nobody's, and a pin's. Requests' keys are positive.
NOBODY = 0
PIN = -1

# In `TierCells.states`, by rising claim to be seen.
FREE, CACHED, USED, PINNED = 0, 1, 2, 3
STATES = ("free", "cached", "used", "pinned")


class TierCells(msgspec.Struct, frozen=True, array_like=True):
    """The cells of one tier's map that have changed; a cell stands for one block, or for several of a large tier.

    Cell ``i`` stands for the blocks ``1 + i · blocks_per_cell`` to ``(i + 1) · blocks_per_cell``. Of several blocks
    in a cell, ``states`` has the commonest, ``fills`` the mean, ``owners`` the owner of the first one in that state,
    ``counts`` the most.

    Attributes:
        tier: "device", "host" or "disk".
        num_blocks, blocks_per_cell: Shape of the tier and of its map.
        cells: int32 bytes ``[n]``, the indices of the cells that follow.
        states: uint8 bytes ``[n]``, `FREE`, `CACHED`, `USED` or `PINNED`.
        owners: int32 bytes ``[n]``: the key of a request that owns the block, `PIN`, or `NOBODY`.
        fills: uint8 bytes ``[n]``, the share of the block's slots that hold KV, of 255.
        counts: uint8 bytes ``[n]``, how many own it, at most 255.
    """

    tier: str
    num_blocks: int
    blocks_per_cell: int
    cells: bytes
    states: bytes
    owners: bytes
    fills: bytes
    counts: bytes


class RunningView(msgspec.Struct, frozen=True, array_like=True):
    """One running sequence.

    Attributes:
        key, index: The request's key, and which of its sequences.
        tenant: Whose it is.
        num_prompt, num_tokens, num_computed: Tokens of the prompt, known ones, and those whose KV is there.
        num_blocks: Entries of its block table.
        preemptions: How often it gave way.
        seconds: Since its request arrived.
    """

    key: int
    index: int
    tenant: str
    num_prompt: int
    num_tokens: int
    num_computed: int
    num_blocks: int
    preemptions: int
    seconds: float


class WaitingView(msgspec.Struct, frozen=True, array_like=True):
    """One waiting sequence, and why it waits.

    Attributes:
        key, index, tenant: As in `RunningView`.
        state: "waiting" if it has not run yet, "preempted" or "swapped".
        reason: `octavo.scheduler.decisions.WaitReason`.
        short: Blocks that are missing. behind: the key of the request that comes before it; 0 if none does.
        num_tokens: Tokens that it needs room for.
        seconds: Since its request arrived.
    """

    key: int
    index: int
    tenant: str
    state: str
    reason: str
    short: int
    behind: int
    num_tokens: int
    seconds: float


class PreemptionView(msgspec.Struct, frozen=True, array_like=True):
    """One preemption; see `octavo.scheduler.decisions.PreemptionRecord`.

    Attributes:
        number: Preemptions before it, since the engine's start.
        ago: How long ago it was.
        victim, beneficiary: Keys of requests; the latter 0 if the blocks were for no single one.
        reason, method: What for, and "swap" or "recompute".
        predicted_swap, predicted_recompute: What either would cost; None if it was not known.
        actual: What it has cost so far. waited: until the victim ran again; None before.
    """

    number: int
    ago: float
    victim: int
    beneficiary: int
    reason: str
    method: str
    blocks: int
    tokens: int
    predicted_swap: float | None
    predicted_recompute: float | None
    waited: float | None
    kept_tokens: int
    recomputed_tokens: int
    actual: float


class LiveView(msgspec.Struct, frozen=True, tag="live"):
    """Engine → front end: what the live map shows; answer to `octavo.engine.messages.ReadLive`.

    Attributes:
        steps: Steps so far.
        cost: How long the engine took to answer: whoever asks again and again can keep to a share of its time.
        tiers: What changed since the last answer, or everything.
        running, waiting: The first so many of each, in the policy's order. num_running, num_waiting: all.
        preemptions: The latest, oldest first; those that changed are told again.
    """

    ticket: int
    steps: int
    cost: float
    tiers: list[TierCells]
    running: list[RunningView]
    num_running: int
    waiting: list[WaitingView]
    num_waiting: int
    preemptions: list[PreemptionView]


class BlockOwner(msgspec.Struct, frozen=True):
    """Who owns a block: a sequence, or a pin.

    Attributes:
        key, index: The request's key and which of its sequences; of a pin, 0 and the pin's number.
        tenant: Whose it is.
        position: Where in the owner's block table the block stands, from 0.
    """

    key: int
    index: int
    tenant: str
    position: int


class BlockView(msgspec.Struct, frozen=True, tag="block"):
    """Engine → front end: one block; answer to `octavo.engine.messages.ReadBlock`.

    Attributes:
        tier, block: Which one; block ids start at 1. state: one of `STATES`.
        owners: Who has it; of a lower tier's blocks, the swapped-out sequences that come back for them.
        filled, size: Slots that hold KV, and slots.
        hash: Of its content and all before it, hexadecimal; None if it is not known to the prefix cache.
        parent: The block before it in the prefix cache; 0 if it begins a prompt, None if it is not known there.
        age: Since it was taken for what it holds. idle: since it lost its last owner; None while it has one.
        hits: Sequences that found it in the prefix cache since it was taken.
    """

    ticket: int
    tier: str
    block: int
    state: str
    owners: list[BlockOwner]
    filled: int
    size: int
    hash: str | None
    parent: int | None
    age: float | None
    idle: float | None
    hits: int


class StoryEvent(msgspec.Struct, frozen=True):
    """Something that happened to a sequence of a request.

    Attributes:
        at: Since the request arrived at the engine.
        kind: One of the following; ``data`` has what is named behind each.

            queued      prompt_tokens, ahead (sequences that waited before it)
            waiting     reason, short (blocks), behind (a request's key, or 0); told when the reason changes
            admitted    waited (since it was queued or gave way), tokens (known), hits {tier: tokens found}, computes
                        (tokens to compute), miss (why the next block was not found, `MissReason`), evicted_ago (None if
                        that is not why)
            prompt_done seconds (since its first sequence was admitted)
            forked      of (index of the sequence whose blocks it shares)
            preempted   reason, method, beneficiary (a request's key, or 0), blocks, tokens, predicted_swap,
                        predicted_recompute, waited, kept_tokens, recomputed_tokens, actual (see `PreemptionView`)
            failed      a step with it failed; it starts over
            finished    reason, output_tokens
        index: Which of the request's sequences.
    """

    at: float
    kind: str
    index: int
    data: dict[str, Any]


class Story(msgspec.Struct, frozen=True, tag="story"):
    """Engine → front end: what happened to a request; answer to `octavo.engine.messages.ReadStory`.

    Attributes:
        known: False if the engine has never heard of it, or has forgotten it; the rest means nothing then.
        state: "waiting", "running", "preempted", "swapped" or "finished"; of several sequences the one furthest behind.
        seconds: Since it arrived, or from its arrival to its end.
        prompt_tokens, cached_tokens: Of the first sequence; the latter are those that its first admission found.
        wait: Why it waits now, if it does.
        events: In order. left_out: events that were not kept, after the first ones.
    """

    ticket: int
    known: bool
    state: str = ""
    tenant: str = ""
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    wait: WaitingView | None = None
    events: list[StoryEvent] = []
    left_out: int = 0
