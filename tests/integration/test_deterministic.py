"""``--deterministic``: neither company, nor chunks, nor cached prefixes, nor preemptions change a bit of a request."""

from __future__ import annotations

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError

pytestmark = pytest.mark.model

STORY = "Once upon a time, in a village by the sea, there lived an old fisherman who had three daughters. " * 3
PROMPTS = [
    "The capital of France is",
    STORY + "The eldest",
    STORY + "The youngest",
    "def fibonacci(n):",
    "In 1969, humans landed on the Moon, and",
    STORY + "One day a stranger came and asked for",
]
# The likelier of two samples, with its log-probability: a float that the last bit of any logit changes.
SAMPLINGS = [SamplingParams(temperature=1.0, seed=seed, best_of=2, max_tokens=40, ignore_eos=True) for seed in range(6)]


def outputs(llm: LLM, prompts: list[str], samplings: list[SamplingParams]) -> list[tuple[list[int], float | None]]:
    results = llm.generate(prompts, samplings)
    assert llm.core.check_integrity() == []
    return [(result.outputs[0].token_ids, result.outputs[0].logprob) for result in results]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_nothing_beside_a_request_changes_it(kv_cache_dtype: str) -> None:
    alone = LLM(
        deterministic=True, num_blocks=256, max_model_len=256, prefix_caching=False, kv_cache_dtype=kv_cache_dtype
    )
    expected = [outputs(alone, [prompt], [sampling])[0] for prompt, sampling in zip(PROMPTS, SAMPLINGS, strict=True)]
    assert len({tuple(tokens) for tokens, _ in expected}) == len(PROMPTS)
    tight = LLM(
        deterministic=True, block_size=4, num_blocks=92, max_model_len=256, max_num_seqs=12,
        max_num_batched_tokens=24, watermark_ratio=0.0, lookahead=0, kv_cache_dtype=kv_cache_dtype,
    )  # fmt: skip
    for _ in range(2):  # the second time the prefixes are cached, some of them from decodes
        assert outputs(tight, PROMPTS, SAMPLINGS) == expected
    assert tight.stats.num_preemptions > 0
    assert tight.stats.prefix_hits["device"] > 0
    assert tight.stats.deduplicated > 0


def test_kernels_that_do_not_guarantee_it_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--deterministic: the kernels for bfloat16 .* on CPUs, with .* auto or cpu"):
        LLM(deterministic=True, dtype="bfloat16", attention_backend="reference", num_blocks=64)
