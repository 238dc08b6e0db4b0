"""The offline LLM on the default model."""

from __future__ import annotations

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError, InvalidRequestError, NeverFitsError

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def llm() -> LLM:
    # The text is known in float32; in bfloat16 a near tie may decide for another.
    return LLM(num_blocks=256, max_model_len=512, dtype="float32")


def test_prompts_come_back_in_order(llm: LLM) -> None:
    capital, count = llm.generate(["The capital of France is", "one, two, three,"], GREEDY)
    assert "Paris" in capital.text
    assert "four" in count.text
    assert capital.outputs[0].finish_reason == "length"
    assert len(capital.outputs[0].token_ids) == 12


def test_chat(llm: LLM) -> None:
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], GREEDY)
    assert answer.text == "The capital of France is Paris."
    assert answer.outputs[0].finish_reason == "stop"


def test_stop_strings_end_one_sequence_and_not_its_siblings(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, n=4, seed=2, max_tokens=24, ignore_eos=True)
    whole = llm.generate("Once upon a time", params)[0]
    stop = whole.outputs[0].text[6:12]
    stopped = llm.generate("Once upon a time", params, stop=stop)[0]
    assert stopped.outputs[0].finish_reason == "stop"
    assert stopped.outputs[0].text == whole.outputs[0].text[: whole.outputs[0].text.index(stop)]
    for before, after in zip(whole.outputs, stopped.outputs, strict=True):
        assert before.text.startswith(after.text)
    assert llm.stats.device.used == 0


def test_bad_requests_are_told_and_leave_nothing_behind(llm: LLM) -> None:
    with pytest.raises(NeverFitsError, match="at most 512 fit"):
        llm.generate(["fine", [1] * 600], GREEDY)
    with pytest.raises(InvalidRequestError, match="no tokens"):
        llm.generate([[]], GREEDY)
    for outside in (-1, 2**31, 2**70):
        with pytest.raises(InvalidRequestError, match=f"token id {outside} in the prompt is outside the vocabulary"):
            llm.generate([[1, outside]], GREEDY)
    assert llm.stats.device.used == 0
    assert llm.stats.waiting == 0
    assert "Paris" in llm.generate("The capital of France is", GREEDY)[0].text


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown option 'blocks'; the known ones are"):
        LLM(blocks=3)
