"""Beam search on the real model says what transformers' says, in float32, also when searches have to start over."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequestError, NeverFitsError

pytestmark = pytest.mark.model

PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time, in a village by the sea,"]
WIDTH = 4
MAX_TOKENS = 20


@pytest.fixture(scope="module")
def expected(model_folder: Path, tokenizer: Tokenizer) -> dict[str, list[list[int]]]:
    """Prompt → transformers' outputs, best first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    outputs = {}
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        with torch.inference_mode():
            generated = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                num_beams=WIDTH,
                num_return_sequences=WIDTH,
                early_stopping=False,
            )
        outputs[prompt] = [row[ids.shape[1] :].tolist() for row in generated]
    return outputs


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32", num_blocks=256, max_model_len=256, max_num_seqs=16)


def test_equals_transformers(llm: LLM, expected: dict[str, list[list[int]]]) -> None:
    forks, copies = llm.stats.forks, llm.stats.copies["copy_on_write"]
    for prompt, result in zip(PROMPTS, llm.beam_search(PROMPTS, beam_width=WIDTH, max_tokens=MAX_TOKENS), strict=True):
        assert [output.token_ids for output in result.outputs] == expected[prompt]
        scores = [output.logprob for output in result.outputs]
        assert scores == sorted(scores, reverse=True)  # all of one length
    assert llm.stats.forks - forks >= 3 * (WIDTH - 1)
    assert llm.stats.copies["copy_on_write"] > copies
    assert llm.stats.device.used == 0


def test_equals_transformers_when_searches_have_to_start_over(expected: dict[str, list[list[int]]]) -> None:
    # Two searches of four beams that fit alone and not together, with little to look ahead by.
    options = {"block_size": 4, "num_blocks": 36, "max_num_seqs": 12, "watermark_ratio": 0.0, "lookahead": 0}
    tight = LLM(dtype="float32", max_model_len=64, **options)
    results = tight.beam_search(PROMPTS, beam_width=WIDTH, max_tokens=MAX_TOKENS, n=1)
    assert [result.outputs[0].token_ids for result in results] == [expected[prompt][0] for prompt in PROMPTS]
    assert tight.stats.num_preemptions > 0
    assert tight.core.check_integrity() == []
    assert tight.stats.device.used == 0


def test_best_of_gives_the_likeliest_samples(llm: LLM) -> None:
    sampling = {"temperature": 1.0, "seed": 7, "max_tokens": 8, "ignore_eos": True}
    samples = llm.generate(PROMPTS[0], SamplingParams(n=5, **sampling))[0].outputs
    two = llm.generate(PROMPTS[0], SamplingParams(n=2, best_of=5, **sampling))[0].outputs
    (best,) = llm.generate(PROMPTS[0], SamplingParams(n=1, best_of=5, **sampling))[0].outputs
    assert best.token_ids == two[0].token_ids
    assert two[0].logprob > two[1].logprob
    assert best.token_ids in [output.token_ids for output in samples]


def test_what_cannot_be_searched_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="beam_width 17 needs as many running sequences"):
        llm.beam_search(PROMPTS[0], beam_width=17, max_tokens=4)
    with pytest.raises(InvalidRequestError, match=r"n \(5\) must not exceed beam_width \(4\)"):
        llm.beam_search(PROMPTS[0], beam_width=4, n=5, max_tokens=4)
    small = LLM(dtype="float32", block_size=4, num_blocks=12, max_num_seqs=8)
    with pytest.raises(NeverFitsError, match="at most"):
        small.beam_search([[1] * 8], beam_width=8, max_tokens=12)
    assert small.stats.waiting == 0
