"""What is refused before it is queued, and what the refusals say."""

from __future__ import annotations

from typing import Any

import pytest
from engines import Engine, plain, prompt
from factories import VOCAB, greedy, make_scheduler
from invariants import check_empty, expected

from octavo.errors import InvalidRequestError, NeverFitsError


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"^the prompt holds no tokens; at least one is needed$") as caught:
        make_scheduler().add(0, [], greedy())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token", [-1, VOCAB, 2**31, -(2**63)])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_scheduler().add(0, [1, token, 2], greedy())
    assert str(caught.value) == f"token id {token} in the prompt is outside the vocabulary (0 to {VOCAB - 1})"
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token", [2**63, -(2**63) - 1, 2**64, 10**30])
def test_a_token_too_large_for_any_array_is_outside_too(token: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"outside the vocabulary \(0 to 63\)$"):
        make_scheduler().add(0, [1, token, 2], greedy())


def test_the_last_token_of_the_vocabulary_is_inside() -> None:
    make_scheduler().add(0, [0, VOCAB - 1], greedy(stop_token_ids=(VOCAB - 1,)))


def test_a_stop_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_scheduler().add(0, [1], greedy(stop_token_ids=(3, VOCAB)))
    assert str(caught.value) == f"stop_token_ids holds {VOCAB}, outside the vocabulary (0 to {VOCAB - 1})"
    assert caught.value.param == "stop_token_ids"


@pytest.mark.parametrize(
    ("limits", "largest"),
    [
        pytest.param({"num_blocks": 16, "max_model_len": 20}, 20, id="window"),
        pytest.param({"num_blocks": 4, "max_model_len": 64}, 17, id="pool"),  # the last token needs no slot
    ],
)
def test_the_largest_request_fits_and_one_token_more_never_does(limits: dict[str, Any], largest: int) -> None:
    engine = Engine(**limits)
    assert engine.scheduler.largest_request() == largest
    with pytest.raises(NeverFitsError) as caught:
        engine.add(0, prompt(10), plain(largest - 9))
    assert str(caught.value) == (
        f"the prompt has 10 tokens and {largest - 9} more are asked for; together at most {largest} fit"
    )
    assert (caught.value.largest, caught.value.param) == (largest, "max_tokens")
    engine.add(0, prompt(10), plain(largest - 10))
    engine.run()
    assert engine.outputs[0, 0] == expected(prompt(10), plain(largest - 10))


def test_a_prompt_that_leaves_no_room_for_a_token_never_fits() -> None:
    scheduler = make_scheduler(max_model_len=20)
    for max_tokens, asked in ((None, "at least 1"), (1, "1"), (9, "9")):
        with pytest.raises(NeverFitsError) as caught:
            scheduler.add(0, prompt(20), greedy(max_tokens))
        assert str(caught.value) == (
            f"the prompt has 20 tokens and {asked} more are asked for; together at most 20 fit"
        )
        assert (caught.value.largest, caught.value.param) == (20, "prompt")


def test_what_never_fits_is_refused_even_if_the_queue_is_full() -> None:
    engine = Engine(max_waiting=1)
    engine.add(0, prompt(3))
    with pytest.raises(NeverFitsError):
        engine.add(1, prompt(3), greedy(1000))


def test_a_refused_request_leaves_nothing_behind() -> None:
    scheduler = make_scheduler()
    for bad in ([], [VOCAB], prompt(60)):
        with pytest.raises((InvalidRequestError, NeverFitsError)):
            scheduler.add(0, bad, greedy(60))
    check_empty(scheduler)
