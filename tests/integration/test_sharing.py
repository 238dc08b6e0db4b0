"""n sequences of one prompt share its blocks; a copy is made when one of them writes."""

from __future__ import annotations

import pytest

from octavo import LLM, SamplingParams

pytestmark = pytest.mark.model

PROMPT = "The lighthouse keeper counted the ships that passed in the fog, one for every bell he heard. " * 8
OUTPUT = 8


@pytest.fixture(scope="module")
def llm() -> LLM:
    # float32: a prefix hit changes the shapes of the matrix products, and in bfloat16 that can change a token.
    return LLM(num_blocks=256, max_model_len=1024, dtype="float32")


def most_used(llm: LLM, n: int, requests: int) -> int:
    """Blocks in use at the busiest moment of these requests."""
    from octavo.engine.messages import AddRequest, packed

    ids = llm.tokenizer.encode(PROMPT)
    for key in range(requests):
        params = SamplingParams(n=n, max_tokens=OUTPUT, seed=7 + key, ignore_eos=True)
        # Different salts: separate requests must not share, or there is nothing to compare with.
        llm.core.add(AddRequest(str(key), packed(ids), params, cache_salt=f"{n}-{key}", key=10_000 + key))
    most = 0
    while llm.core.has_work:
        llm.core.step()
        most = max(most, llm.stats.device.used)
    return most


def test_four_samples_of_one_prompt_share_its_blocks(llm: LLM) -> None:
    before = llm.stats
    together, apart = most_used(llm, n=4, requests=1), most_used(llm, n=1, requests=4)
    after = llm.stats
    prompt_blocks = -(-len(llm.tokenizer.encode(PROMPT)) // llm.info.block_size)
    assert apart >= 4 * prompt_blocks
    assert together <= prompt_blocks + 4 * 2
    assert after.forks - before.forks == 3
    # The partial last block has four owners: three copies, and the last owner writes in place.
    assert after.copies["copy_on_write"] - before.copies["copy_on_write"] == 3
    assert llm.core.check_integrity() == []


def test_samples_differ_and_are_reproducible(llm: LLM) -> None:
    params = SamplingParams(n=4, max_tokens=16, temperature=1.0, seed=3)
    first = llm.generate(PROMPT, params)[0]
    again = llm.generate(PROMPT, params)[0]
    assert [o.token_ids for o in first.outputs] == [o.token_ids for o in again.outputs]
    assert len({tuple(o.token_ids) for o in first.outputs}) == 4
    assert again.cached_tokens > 0
