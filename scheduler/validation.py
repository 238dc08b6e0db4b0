"""What is refused before it is queued, because no waiting would help."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from octavo.block_manager.loops import find_outside
from octavo.block_manager.manager import BlockManager
from octavo.errors import InvalidRequestError, NeverFitsError
from octavo.scheduler.request import Request, Tokens
from octavo.scheduler.sampling import SamplingParams


def check_tokens(tokens: Sequence[int] | Tokens, *, vocab_size: int) -> Tokens:
    """Token ids as int32 ``[num_tokens]``.

    Raises:
        InvalidRequestError: There are none, or one is outside ``[0, vocab_size)``.
    """
    if not len(tokens):
        raise InvalidRequestError("the prompt holds no tokens; at least one is needed", param="prompt")
    try:
        # array.array reads a list of integers twice as fast as numpy does.
        ids = np.array(tokens if isinstance(tokens, np.ndarray) else array("i", tokens), dtype=np.int32)
        place = find_outside(ids, vocab_size)
    except OverflowError:
        place = next(place for place, token in enumerate(tokens) if not 0 <= token < vocab_size)
    if place >= 0:
        raise InvalidRequestError(
            f"token id {tokens[place]} in the prompt is outside the vocabulary (0 to {vocab_size - 1})", param="prompt"
        )
    return ids


def check_prompt(prompt: Sequence[int] | Tokens, sampling: SamplingParams, *, vocab_size: int) -> Tokens:
    """The prompt as int32 ``[num_prompt_tokens]``.

    Raises:
        InvalidRequestError: It is empty, or it or a parameter holds an id outside ``[0, vocab_size)``.
    """
    ids = check_tokens(prompt, vocab_size=vocab_size)
    for name, token in sampling.token_ids:
        if token >= vocab_size:
            raise InvalidRequestError(
                f"{name} holds {token}, outside the vocabulary (0 to {vocab_size - 1})", param=name
            )
    return ids


def blocks_at_the_end(request: Request, manager: BlockManager) -> int:
    """The most blocks that one of a request's sequences, or all beams of its search, can come to hold."""
    # The last sampled token is returned and never computed, so it needs no slot.
    if request.sampling.beam_width < 2:
        return manager.most_blocks(request.limit - 1)
    shared = len(request.prompt) // manager.block_size
    own = manager.columns_for(request.limit - 1) - shared
    return (shared + request.sampling.beam_width * own) * manager.blocks_per_column


def largest_search(num_prompt: int, width: int, *, block_size: int, capacity: int) -> int:
    """The most tokens (prompt + output) for which all beams of a search fit into ``capacity`` entries of tables."""
    shared = num_prompt // block_size
    return (shared + max(0, capacity - shared) // width) * block_size + 1


def check_length(num_prompt: int, sampling: SamplingParams, *, largest: int) -> int:
    """Tokens, prompt included, at which a sequence of this request ends.

    Args:
        largest: The most that will ever fit.

    Raises:
        NeverFitsError: The request asks for more.
    """
    wanted = num_prompt + (sampling.max_tokens or 1)
    if wanted > largest:
        raise NeverFitsError(
            f"the prompt has {num_prompt} tokens and {sampling.max_tokens or 'at least 1'} more are asked for; "
            f"together at most {largest} fit",
            largest=largest,
            param="max_tokens" if sampling.max_tokens and num_prompt < largest else "prompt",
        )
    return largest if sampling.max_tokens is None else wanted
