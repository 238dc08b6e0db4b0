"""Pins and invalidation on the real model."""

from __future__ import annotations

import time

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError, NeverFitsError, PinBudgetError

pytestmark = pytest.mark.model

SYSTEM = list(range(1000, 1064))  # four blocks
ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1)


@pytest.fixture
def llm() -> LLM:
    return LLM(num_blocks=24, max_model_len=256, pin_ratio=0.25)


def fill(llm: LLM) -> None:
    """Has other prompts push everything out of the cache that is not pinned."""
    for start in range(2000, 2600, 300):
        llm.generate([list(range(start, start + 240))], ONE_TOKEN)


def hit(llm: LLM) -> int:
    return llm.generate([[*SYSTEM, 5]], ONE_TOKEN)[0].cached_tokens


def test_a_pinned_prompt_stays_and_an_unpinned_one_does_not(llm: LLM) -> None:
    pin = llm.pin(SYSTEM, ttl=600)
    fill(llm)
    assert hit(llm) == 64
    assert llm.stats.device.pinned == 4
    assert llm.unpin(pin)
    assert not llm.unpin(pin)
    fill(llm)
    assert hit(llm) == 0
    assert llm.core.check_integrity() == []


def test_pins_expire(llm: LLM) -> None:
    llm.pin(SYSTEM, ttl=0.05)
    assert len(llm.pins()) == 1
    time.sleep(0.06)
    assert llm.pins() == []
    assert llm.stats.pins_ended["expired"] == 1


def test_the_budget_is_hard(llm: LLM) -> None:
    with pytest.raises(NeverFitsError, match="112 tokens are 7 blocks, and at most 6 may be pinned"):
        llm.pin(list(range(1000, 1112)), ttl=600)
    llm.pin(SYSTEM, ttl=600)
    with pytest.raises(PinBudgetError):
        llm.pin(list(range(3000, 3064)), ttl=600)
    with pytest.raises(InvalidRequestError, match="15 tokens fill no block of 16"):
        llm.pin(SYSTEM[:15], ttl=600)
    assert llm.stats.device.pinned == 4


def test_pins_give_way_to_a_request_that_could_not_run_otherwise(llm: LLM) -> None:
    llm.pin(SYSTEM, ttl=600)
    prompt = list(range(4000, 4240))
    answer = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))[0]
    assert len(answer.outputs[0].token_ids) == 16
    whole_pool = LLM(num_blocks=12, max_model_len=190, pin_ratio=0.5)
    whole_pool.pin(SYSTEM, ttl=600)
    whole_pool.generate([prompt[:180]], SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    assert whole_pool.stats.pins_ended["gave_way"] == 1
    assert whole_pool.core.check_integrity() == []


def test_invalidation_by_prefix_and_salt(llm: LLM) -> None:
    hit(llm)
    assert hit(llm) == 64
    assert llm.invalidate(prompt=SYSTEM[:32]) == 3
    assert hit(llm) == 16
    llm.generate([[*SYSTEM, 5]], ONE_TOKEN, cache_salt="a")
    assert llm.invalidate(cache_salt="a") == 4
    assert hit(llm) == 64
    assert llm.invalidate() == 4
    assert hit(llm) == 0
