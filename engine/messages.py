"""What crosses the boundary between the front end and the engine.

The structs are encoded with msgspec (MessagePack) when the engine is another process and handed over as they
are when it is not. Never pickle: a message is data, whoever sends it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.scheduler.sampling import SamplingParams

# Heartbeats arrive at the engine's endpoint with this appended: a socket belongs to one thread.
ALIVE_SUFFIX = ".alive"

# A token id in `AddRequest.prompt`.
TOKEN_BYTES = 4


def packed(ids: Sequence[int]) -> bytes:
    """Token ids as int32 bytes: what a long prompt travels as, which the engine need not take apart between steps."""
    return array("i", ids).tobytes()


def unpacked(data: bytes) -> list[int]:
    """The inverse of `packed`."""
    return array("i", data).tolist()


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Front end → engine, first of all: what to load.

    Attributes:
        options: `octavo.config.to_mapping` of the engine's config.
        folder: The prepared model folder. name: what to call the model.
    """

    options: dict[str, Any]
    folder: str
    name: str


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    """Front end → engine: start a request.

    Attributes:
        request_id: The front end's own unique id, never the client's.
        prompt: int32 bytes, see `packed`; every id in ``[0, vocab_size)``.
        sampling: How to sample and when to stop.
        cache_salt: Prefix-cache namespace; requests with different salts never share blocks. "" is the common one.
        tenant: Whose request it is; "" is the default tenant. Tenants never share blocks.
        priority: Smaller is more urgent, under ``--policy priority``.
        pin_ttl: Seconds for which to pin the prompt once it is computed; None for not at all.
        arrival: Seconds on this machine's monotonic clock at which the front end received the request.
        key: The number under which the engine answers; the engine client sets it.
    """

    request_id: str
    prompt: bytes
    sampling: SamplingParams
    cache_salt: str = ""
    tenant: str = ""
    priority: int = 0
    pin_ttl: float | None = None
    arrival: float = 0.0
    key: int = 0


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    """Front end → engine: forget these requests and free their blocks. Unknown keys are ignored and counted."""

    keys: list[int]


class EndSequence(msgspec.Struct, frozen=True, tag="end"):
    """Front end → engine: one of a request's sequences has said enough (a stop string matched); the others go on."""

    key: int
    index: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Front end → engine: end the process now; the front end has drained."""


class CheckIntegrity(msgspec.Struct, frozen=True, tag="check"):
    """Front end → engine: verify every invariant of the pool between two steps; answered by `IntegrityReport`."""

    ticket: int


class SequenceDelta(msgspec.Struct, frozen=True):
    """New tokens of one sequence of a request, as the engine client hands them to a route.

    Attributes:
        request_id: The request.
        index: Which of the request's n sequences, from 0.
        token_ids: The tokens this step added; the stop token that ended the sequence is included.
        finish_reason: None while running; then "stop", "length", "abort" or "error".
        stop_token_id: The token that ended the sequence, when finish_reason is "stop".
        cached_tokens: Prompt tokens whose KV came from the prefix cache.
        error: What failed, when finish_reason is "error".
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: str | None = None
    stop_token_id: int | None = None
    cached_tokens: int = 0
    error: str | None = None


class TierBlocks(msgspec.Struct, frozen=True, array_like=True):
    """A tier's blocks by state; used + cached + free = total.

    Attributes:
        used: With an owner: on the device a block table or a pin, below it a swapped-out sequence.
        cached: Without an owner, holding reusable KV. pinned: those of the used ones that a pin holds.
    """

    total: int = 0
    used: int = 0
    cached: int = 0
    free: int = 0
    pinned: int = 0


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot of the engine after a step. Counters only grow, from 0 at the engine's start.

    Attributes:
        running, waiting: Sequences holding a place in the batch; sequences queued. swapped: those of the latter whose
            KV lies in a lower tier.
        waiting_by_reason: The latter by `octavo.scheduler.decisions.WaitReason`.
        blocks: Per tier that there is ("device", "host", "disk").
        blocks_shared: Blocks with more than one owner. blocks_saved: blocks that sharing spares right now.
        blocks_by_tenant: Used and pinned device blocks.
        slots_filled: Token slots holding KV inside used blocks.
        steps, step_seconds: Steps executed, and the time spent in them.
        prompt_tokens, generated_tokens: Tokens computed by kind (prompt: without prefix hits).
        prefix_queries: Tokens looked up in the prefix cache at each admission. prefix_hits: those found, by tier.
        prefix_misses: Look-ups by the reason why they found no more.
        preemptions: (method, reason, count) of sequences put back to waiting because blocks ran out.
        recomputed_tokens, swapped_tokens: What that cost: tokens computed again, and tokens copied back.
        swap_full: Victims that were to be swapped out and found no room below.
        evictions: Cached device blocks whose content was given up, or sank.
        copies: Block copies by kind: copy_on_write, and device_to_host and the like.
        copies_lost: Copies between tiers that did not arrive intact.
        forks: Sequences that started by sharing all blocks of a sibling.
        deduplicated: Blocks given back because another request had made the same one.
        pins: Pins there are. pins_ended: those that expired or gave way to a request.
        finished: Finished sequences by reason.
        unknown_aborts: Aborts for requests that were not there (any more).
    """

    running: int = 0
    waiting: int = 0
    swapped: int = 0
    waiting_by_reason: dict[str, int] = {}
    blocks: dict[str, TierBlocks] = {}
    blocks_shared: int = 0
    blocks_saved: int = 0
    blocks_by_tenant: dict[str, int] = {}
    slots_filled: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: dict[str, int] = {}
    prefix_misses: dict[str, int] = {}
    preemptions: list[tuple[str, str, int]] = []
    recomputed_tokens: int = 0
    swapped_tokens: int = 0
    swap_full: int = 0
    evictions: int = 0
    copies: dict[str, int] = {}
    copies_lost: int = 0
    forks: int = 0
    deduplicated: int = 0
    pins: int = 0
    pins_ended: dict[str, int] = {}
    finished: dict[str, int] = {}
    unknown_aborts: int = 0

    @property
    def device(self) -> TierBlocks:
        """The device's blocks."""
        return self.blocks.get("device", TierBlocks())

    @property
    def num_preemptions(self) -> int:
        """Preemptions of all kinds."""
        return sum(count for _, _, count in self.preemptions)


class LoadProgress(msgspec.Struct, frozen=True, tag="progress"):
    """Engine → front end while starting: what it is doing, for a person to read."""

    text: str


class EngineInfo(msgspec.Struct, frozen=True, tag="ready"):
    """Engine → front end, once: ready, and what it is serving.

    Attributes:
        model_name: Name or path the operator gave. vocab_size: token ids lie in ``[0, vocab_size)``.
        max_model_len: Longest prompt + output, in tokens. eos_token_ids: the model's end-of-sequence tokens.
        block_size, num_blocks: Shape of the KV pool. max_num_seqs: the largest batch.
        device, dtype, attention_backend: What ``auto`` came to mean.
        report: Start-up report, line by line.
    """

    model_name: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    block_size: int
    num_blocks: int
    max_num_seqs: int
    device: str
    dtype: str
    attention_backend: str
    report: list[str]


class StartFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Engine → front end: the engine could not start. ``kind`` is the class name in `octavo.errors`."""

    kind: str
    message: str


class StreamEnd(msgspec.Struct, frozen=True, array_like=True):
    """The end of one sequence; the fields mean what they mean in `SequenceDelta`."""

    stream: int
    reason: str
    stop_token_id: int | None = None
    error: str | None = None


class StepOutput(msgspec.Struct, frozen=True, tag="step"):
    """Engine → front end, once a step: all new tokens. Columns, so that a step of 1,024 tokens is no 1,024 objects.

    Attributes:
        streams: int64 bytes; `octavo.scheduler.streams.split_stream` gives (key, index).
        tokens: int32 bytes; ``tokens[i]`` goes to ``streams[i]``.
        started: (stream, prefix hit in tokens) of sequences that got their first token.
        finished: Sequences that ended.
        stats: The state after the step; sent at a bounded rate.
    """

    streams: bytes
    tokens: bytes
    started: list[tuple[int, int]]
    finished: list[StreamEnd]
    stats: EngineStats | None = None


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """Engine → front end: a request was not taken. ``kind`` is the class name in `octavo.errors`."""

    key: int
    kind: str
    message: str
    param: str | None = None
    largest: int = 0


class Heartbeat(msgspec.Struct, frozen=True, tag="alive"):
    """Engine → front end, several times a second from a thread of its own: the process gets to run."""

    beats: int


class IntegrityReport(msgspec.Struct, frozen=True, tag="integrity"):
    """Engine → front end: answer to `CheckIntegrity`; an empty list of problems is good news."""

    ticket: int
    problems: list[str]


ToEngine = AddRequest | AbortRequests | EndSequence | Shutdown | CheckIntegrity
FromEngine = LoadProgress | EngineInfo | StartFailed | StepOutput | Rejected | Heartbeat | IntegrityReport
