"""Log-probabilities as OpenAI's clients expect them: one form for chats, another for completions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec

from octavo.engine.messages import TokenLogprob
from octavo.engine.tokenizer import Tokenizer


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the likeliest tokens in a place."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    """One token of a chat's answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """``logprobs`` of a chat's choice."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """``logprobs`` of a completion's choice: columns over its tokens. A prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True):
    """One of the tokens in a place of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


def chat_logprobs(tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> ChatLogprobs:
    """What a chat tells of its tokens."""
    return ChatLogprobs([_chat_token(tokenizer, id, scored) for id, scored in zip(ids, logprobs, strict=True)])


def completion_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], offset: int
) -> tuple[CompletionLogprobs, int]:
    """What a completion tells of its tokens.

    Args:
        offset: Where in the choice's text the first of them begins, in characters.

    Returns:
        That, and where the next token begins.
    """
    *offsets, end = accumulate((len(_text(tokenizer.bytes_of(id))) for id in ids), initial=offset)
    tops = [
        None if scored is None else _by_name(tokenizer, id, scored) for id, scored in zip(ids, logprobs, strict=True)
    ]
    own = [None if scored is None else scored.logprob for scored in logprobs]
    return CompletionLogprobs([_name(tokenizer, id) for id in ids], own, tops, offsets), end


def prompt_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]
) -> list[dict[int, PromptLogprob] | None]:
    """For each of a prompt's tokens: it and the likeliest ones in its place, by id; None for the first one."""
    return [
        None if scored is None else _in_its_place(tokenizer, id, scored)
        for id, scored in zip(ids, logprobs, strict=True)
    ]


def _in_its_place(tokenizer: Tokenizer, id: int, scored: TokenLogprob) -> dict[int, PromptLogprob]:
    ranked = [(id, scored.logprob, scored.rank)]
    ranked += [(token, logprob, rank) for rank, (token, logprob) in enumerate(scored.top, 1) if token != id]
    return {token: PromptLogprob(logprob, rank, _text(tokenizer.bytes_of(token))) for token, logprob, rank in ranked}


def _chat_token(tokenizer: Tokenizer, id: int, scored: TokenLogprob) -> ChatTokenLogprob:
    data = tokenizer.bytes_of(id)
    top = [(tokenizer.bytes_of(token), logprob) for token, logprob in scored.top]
    return ChatTokenLogprob(
        _text(data),
        scored.logprob,
        list(data),
        [TopLogprob(_text(other), logprob, list(other)) for other, logprob in top],
    )


def _by_name(tokenizer: Tokenizer, id: int, scored: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens' log-probabilities, and the token's own."""
    return {_name(tokenizer, token): logprob for token, logprob in (*scored.top, (id, scored.logprob))}


def _name(tokenizer: Tokenizer, id: int) -> str:
    """A token's text; parts of characters, which would all look alike, as OpenAI writes them: ``bytes:\\xe2\\x80``."""
    data = tokenizer.bytes_of(id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
