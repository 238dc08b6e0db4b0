"""Log-probabilities of outputs and prompts are transformers', however the prompt was computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from prompts import PROMPTS

from octavo import LLM, SamplingParams

pytestmark = pytest.mark.model

WORDS = " ".join(prompt.text for prompt in PROMPTS).split()
TEXTS = [" ".join(WORDS[start : start + 30]) for start in range(0, 90, 15)]
SAMPLING = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=3, prompt_logprobs=3)


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 256},
        {"num_blocks": 256, "block_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 16},
        {"num_blocks": 24, "block_size": 8, "preemption": "recompute"},
        {"num_blocks": 24, "block_size": 8, "preemption": "swap", "swap_space": 2**28},
    ],
    ids=["at once", "in chunks", "recomputed", "swapped"],
)
def test_scores_are_those_of_transformers(reference: torch.nn.Module, options: dict[str, object]) -> None:
    llm = LLM(dtype="float32", **options)
    for answer in (*llm.generate(TEXTS, SAMPLING), *llm.generate(TEXTS, SAMPLING)):  # the second time, all is cached
        prompt, output = answer.prompt_token_ids, answer.outputs[0]
        ids = [*prompt, *output.token_ids]
        with torch.inference_mode():
            expected = torch.log_softmax(reference(torch.tensor([ids])).logits[0].double(), -1)
        told = [answer.prompt_logprobs[position] for position in range(1, len(prompt))] + output.logprobs
        own = [float(expected[position, token]) for position, token in enumerate(ids[1:])]
        np.testing.assert_allclose([scored.logprob for scored in told], own, atol=2e-4)
        for position, scored in enumerate(told):
            tokens = [token for token, _ in scored.top]
            np.testing.assert_allclose([p for _, p in scored.top], expected[position].topk(3).values, atol=2e-4)
            assert scored.rank == 1 + int((expected[position] > own[position] + 1e-9).sum()) or scored.rank > 100
            assert tokens == expected[position].topk(3).indices.tolist()
    assert (llm.stats.num_preemptions > 0) == ("preemption" in options)


def test_a_scored_prompt_reads_no_cache_and_fills_it() -> None:
    llm = LLM(num_blocks=256, dtype="float32")
    text = TEXTS[0]
    assert llm.generate(text, SAMPLING)[0].cached_tokens == 0
    assert llm.generate(text, SAMPLING)[0].cached_tokens == 0
    assert llm.generate(text, SamplingParams(max_tokens=1))[0].cached_tokens > 0
    assert llm.stats.prefix_misses["not_read"] == 2
