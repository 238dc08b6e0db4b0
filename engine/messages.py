"""What crosses the boundary between the front end and the engine.

The structs are encoded with msgspec (MessagePack) when the engine is another process and handed over as they
are when it is not. Never pickle: a message is data, whoever sends it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from octavo.engine.views import BlockView, LiveView, Story
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
        log_format, log_level: As `octavo.logs.set_up` takes them.
    """

    options: dict[str, Any]
    folder: str
    name: str
    log_format: str = "human"
    log_level: str = "warning"


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    """Front end → engine: start a request.

    Attributes:
        request_id: The front end's own unique id, never the client's.
        prompt: int32 bytes, see `packed`; every id in ``[0, vocab_size)``.
        sampling: How to sample and when to stop.
        cache_salt: Prefix-cache namespace; requests with different salts never share blocks. "" is the common one.
        tenant: Whose request it is; "" is the default tenant. Tenants never share blocks.
        priority: Smaller is more urgent, under ``--policy priority``.
        pin_ttl: Seconds for which to pin the prompt once it is computed, if pins may take so much; None for not at all.
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

    ticket: int = 0


class AddPin(msgspec.Struct, frozen=True, tag="pin"):
    """Front end → engine: pin a prefix, if it is cached; answered by a `PinReport` of the pin, or of none.

    Attributes:
        prompt, cache_salt, tenant: As in `AddRequest`.
        ttl: Seconds.
    """

    prompt: bytes
    ttl: float
    cache_salt: str = ""
    tenant: str = ""
    ticket: int = 0


class ListPins(msgspec.Struct, frozen=True, tag="pins"):
    """Front end → engine: which pins are there? Answered by a `PinReport`, what expires next first."""

    ticket: int = 0


class DropPin(msgspec.Struct, frozen=True, tag="unpin"):
    """Front end → engine: let a pin go; answered by a `PinReport` of what it was, or of none."""

    number: int
    ticket: int = 0


class ReadLive(msgspec.Struct, frozen=True, tag="read live"):
    """Front end → engine: what should the live map show? Answered by a `LiveView`.

    Attributes:
        fresh: Tell all cells, instead of those that changed since the last answer.
        most_cells: Of each tier; larger tiers get several blocks to a cell. A change of it makes the answer fresh.
    """

    fresh: bool
    most_cells: int
    ticket: int = 0


class ReadBlock(msgspec.Struct, frozen=True, tag="read block"):
    """Front end → engine: what about this block? Answered by a `BlockView`."""

    tier: str
    block: int
    ticket: int = 0


class ReadStory(msgspec.Struct, frozen=True, tag="read story"):
    """Front end → engine: what has happened to this request? Answered by a `Story`."""

    key: int
    ticket: int = 0


class TokenLogprob(NamedTuple):
    """What is known about one token in its place.

    Attributes:
        logprob: Its log-probability in the model's own distribution, natural.
        rank: 1 if no token is likelier.
        top: The likeliest tokens in its place and their log-probabilities, likeliest first; as many as were asked for.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class TokenScores(msgspec.Struct, frozen=True, array_like=True):
    """`octavo.scheduler.plan.Scores` as a message: float32 and int32 bytes."""

    stream: int
    position: int
    logprobs: bytes
    ranks: bytes
    top_tokens: bytes
    top_logprobs: bytes


class SequenceDelta(msgspec.Struct, frozen=True):
    """New tokens of one sequence of a request, as the engine client hands them to a route.

    Attributes:
        request_id: The request.
        index: Which of the request's n sequences, from 0.
        token_ids: The tokens this step added; the stop token that ended the sequence is included.
        finish_reason: None while running; then "stop", "length", "abort" or "error".
        stop_token_id: The token that ended the sequence, when finish_reason is "stop".
        cached_tokens: Prompt tokens whose KV came from the prefix cache.
        queue_seconds: From the request's arrival at the engine until this sequence was first let in.
        prefill_seconds: From then until its prompt was computed.
        preemptions: How often it has given way so far.
        error: What failed, when finish_reason is "error".
        logprobs: One for each of ``token_ids``, if the request asked for them.
        prompt_logprobs: The same for the prompt's tokens, by their positions; those that are new.
        embedding: The prompt's vector, float32 bytes, if the request asked for it.
        pin: The number of the prompt's pin, if one was asked for; 0: there was no room for it.
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: str | None = None
    stop_token_id: int | None = None
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    preemptions: int = 0
    error: str | None = None
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: dict[int, TokenLogprob] = {}
    embedding: bytes | None = None
    pin: int | None = None


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


class HistogramCounts(msgspec.Struct, frozen=True, array_like=True):
    """A distribution since the engine's start.

    Attributes:
        bounds: Upper bounds, inclusive, rising; one less than there are counts.
        counts: Observations in each bucket, not accumulated; the last is for what exceeds all bounds.
        total: Sum of all observations.
    """

    bounds: list[float] = []
    counts: list[int] = msgspec.field(default_factory=lambda: [0])
    total: float = 0.0


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot of the engine after a step. Counters only grow, from 0 at the engine's start.

    Attributes:
        running, waiting: Sequences holding a place in the batch; sequences queued. swapped: those of the latter whose
            KV lies in a lower tier.
        waiting_by_reason: The latter by `octavo.scheduler.decisions.WaitReason`.
        blocks: Per tier that there is ("device", "host", "disk").
        blocks_shared: Blocks with more than one owner. blocks_saved: blocks that sharing spares right now.
        blocks_by_tenant: Used and pinned device blocks.
        slots_used, slots_filled: Token slots in used blocks, and those of them that hold KV.
        steps, step_seconds: Steps executed, and the time spent in them.
        phase_seconds: The latter by phase: schedule, transfer, execute, update.
        histograms: Distributions: step_seconds, step_tokens and step_sequences of steps; and of device blocks, in
            seconds, block_lifetime (from taken to given up), block_idle (from its last owner to given up) and
            block_reuse_gap (from its last owner to a prefix hit).
        prompt_tokens, generated_tokens: Tokens computed by kind (prompt: without prefix hits).
        prefix_queries: Tokens looked up in the prefix cache at each admission. prefix_hits: those found, by tier.
        prefix_misses: Look-ups by the reason why they found no more.
        preemptions: (method, reason, count) of sequences put back to waiting because blocks ran out.
        recomputed_tokens, swapped_tokens: What that cost: tokens computed again, and tokens copied back.
        swap_full: Victims that were to be swapped out and found no room below.
        evictions: Cached device blocks whose content was given up, or sank.
        copies: Block copies by kind: copy_on_write, and device_to_host and the like.
        copied_bytes, copy_seconds: Of these, as far as they are known: copies on write are part of a step.
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
    slots_used: int = 0
    slots_filled: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    phase_seconds: dict[str, float] = {}
    histograms: dict[str, HistogramCounts] = {}
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
    copied_bytes: dict[str, int] = {}
    copy_seconds: dict[str, float] = {}
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
        hidden_size: Numbers in a token's hidden state, and in an embedding.
        max_model_len: Longest prompt + output, in tokens. eos_token_ids: the model's end-of-sequence tokens.
        block_size, num_blocks: Shape of the KV pool. max_num_seqs: the largest batch. block_bytes: of one block.
        device, dtype, attention_backend: What ``auto`` came to mean.
        report: Start-up report, line by line.
    """

    model_name: str
    vocab_size: int
    hidden_size: int
    max_model_len: int
    eos_token_ids: list[int]
    block_size: int
    num_blocks: int
    max_num_seqs: int
    device: str
    dtype: str
    attention_backend: str
    report: list[str]
    block_bytes: int = 0


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


class StreamStart(msgspec.Struct, frozen=True, array_like=True):
    """A sequence has its first token; the fields mean what they mean in `SequenceDelta`."""

    stream: int
    cached_tokens: int
    queue_seconds: float
    prefill_seconds: float


class StepOutput(msgspec.Struct, frozen=True, tag="step"):
    """Engine → front end, once a step: all new tokens. Columns, so that a step of 1,024 tokens is no 1,024 objects.

    Attributes:
        streams: int64 bytes; `octavo.scheduler.streams.split_stream` gives (key, index).
        tokens: int32 bytes; ``tokens[i]`` goes to ``streams[i]``.
        started: Sequences that got their first token.
        finished: Sequences that ended.
        preempted: Streams of those that gave way.
        scores: Log-probabilities, for requests that asked for them.
        embeddings: (stream, float32 bytes) of prompts whose vectors were asked for.
        pinned: (stream, pin number) of prompts that were to be pinned; 0 if there was no room.
        stats: The state after the step; sent at a bounded rate.
    """

    streams: bytes
    tokens: bytes
    started: list[StreamStart]
    finished: list[StreamEnd]
    preempted: list[int] = []
    stats: EngineStats | None = None
    scores: list[TokenScores] = []
    embeddings: list[tuple[int, bytes]] = []
    pinned: list[tuple[int, int]] = []


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """Engine → front end: a request was not taken, or a question not answered.

    Attributes:
        key: The request's, or the question's ticket. kind: the class name in `octavo.errors`.
    """

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


class PinInfo(msgspec.Struct, frozen=True):
    """A pin, as it is seen from outside.

    Attributes:
        number: Names it, for as long as the engine lives. tenant: whose it is.
        num_tokens, num_blocks: What it keeps; pins that begin alike keep their common blocks together.
        expires_in: Seconds that are left to it.
    """

    number: int
    tenant: str
    num_tokens: int
    num_blocks: int
    expires_in: float


class PinReport(msgspec.Struct, frozen=True, tag="pinned"):
    """Engine → front end: answer to all that is asked about pins: those that the question was about."""

    ticket: int
    pins: list[PinInfo]


# The engine's client sets a question's ticket, and is answered under it.
Question = CheckIntegrity | AddPin | ListPins | DropPin | ReadLive | ReadBlock | ReadStory
Answer = IntegrityReport | PinReport | LiveView | BlockView | Story
ToEngine = AddRequest | AbortRequests | EndSequence | Shutdown | Question
FromEngine = LoadProgress | EngineInfo | StartFailed | StepOutput | Rejected | Heartbeat | Answer
