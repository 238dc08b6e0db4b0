"""What is refused before it is queued, because no waiting would help."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.errors import InvalidRequestError, NeverFitsError
from octavo.scheduler.request import Tokens
from octavo.scheduler.sampling import SamplingParams


def check_prompt(prompt: Sequence[int] | Tokens, sampling: SamplingParams, *, vocab_size: int) -> Tokens:
    """The prompt as int32 ``[num_prompt_tokens]``.

    Raises:
        InvalidRequestError: It is empty, or it or ``stop_token_ids`` holds an id outside ``[0, vocab_size)``.
    """
    if not len(prompt):
        raise InvalidRequestError("the prompt holds no tokens; at least one is needed", param="prompt")
    ids = np.asarray(prompt)  # of whatever type holds them: an id may be too large for int64
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise InvalidRequestError(
            f"token id {outside[0]} in the prompt is outside the vocabulary (0 to {vocab_size - 1})", param="prompt"
        )
    for token in sampling.stop_token_ids:
        if token >= vocab_size:
            raise InvalidRequestError(
                f"stop_token_ids holds {token}, outside the vocabulary (0 to {vocab_size - 1})",
                param="stop_token_ids",
            )
    return ids.astype(np.int32)


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
