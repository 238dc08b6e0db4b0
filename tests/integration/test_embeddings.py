"""Embeddings are transformers' hidden states, however the prompts were computed; and over HTTP they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from prompts import PROMPTS
from serving import Server

from octavo import LLM, SamplingParams
from octavo.engine.messages import AddRequest, packed
from octavo.engine.tokenizer import Tokenizer
from octavo.scheduler.plan import Embedding

pytestmark = pytest.mark.model

WORDS = " ".join(prompt.text for prompt in PROMPTS).split()
TEXTS = [" ".join(WORDS[start : start + 30]) for start in range(0, 90, 15)]
KINDS = ("last", "mean")

Vectors = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def states(model_folder: Path, tokenizer: Tokenizer) -> list[Vectors]:
    """transformers' last hidden states of the texts, in float32."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        return [model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].numpy() for text in TEXTS]


def pooled(states: list[Vectors], kind: str) -> list[Vectors]:
    return [state[-1] if kind == "last" else state.mean(axis=0) for state in states]


def embedding(kind: str) -> SamplingParams:
    return SamplingParams(pooling=kind, max_tokens=1, temperature=0)


def check(vector: Any, expected: Vectors) -> None:
    assert cosine(vector, expected) > 0.9999
    np.testing.assert_allclose(vector, expected, atol=2e-3, rtol=1e-3)


def cosine(one: Any, other: Any) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"block_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 16}, {"prefix_caching": False}],
    ids=["at once", "in chunks", "uncached"],
)
def test_vectors_are_those_of_transformers(states: list[Vectors], kind: str, options: dict[str, Any]) -> None:
    llm = LLM(dtype="float32", num_blocks=256, **options)
    for _ in range(2):  # the second time, all is cached
        for answer, expected in zip(llm.generate(TEXTS, embedding(kind)), pooled(states, kind), strict=True):
            check(answer.embedding, expected)
    assert (llm.stats.prefix_hits.get("device", 0) > 0) == (kind == "last" and options.get("prefix_caching", True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [{"preemption": "recompute"}, {"preemption": "swap", "swap_space": 2**26}])
def test_so_they_are_after_a_preemption_in_mid_prompt(states: list[Vectors], kind: str, way: dict[str, Any]) -> None:
    pool = {"num_blocks": 16, "block_size": 4, "max_model_len": 64, "max_num_batched_tokens": 8, "max_num_seqs": 4}
    llm = LLM(dtype="float32", policy="priority", **pool, **way)
    core, found = llm.core, list[Embedding]()
    core.add(AddRequest("", packed(llm.tokenizer.encode(TEXTS[0])), embedding(kind), priority=5, key=1))
    for _ in range(2):
        core.step()
    core.add(AddRequest("", packed([7] * 24), SamplingParams(max_tokens=4, ignore_eos=True), key=2))
    while core.has_work:
        found += core.step().embeddings
    (vector,) = (embedding.vector for embedding in found)
    check(vector, pooled(states, kind)[0])
    assert core.stats().num_preemptions == 1


@pytest.mark.parametrize("kind", KINDS)
def test_over_http(server: Server, states: list[Vectors], kind: str) -> None:
    body = {"input": TEXTS, "pooling": kind}
    whole = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60).json()
    short = httpx.post(f"{server.url}/v1/embeddings", json={**body, "dimensions": 64}, timeout=60).json()
    for entry, cut, expected in zip(whole["data"], short["data"], pooled(states, kind), strict=True):
        assert cosine(entry["embedding"], expected) > 0.9999
        assert cosine(cut["embedding"], expected[:64]) > 0.9999
        assert np.linalg.norm(cut["embedding"]) == pytest.approx(1.0)


def test_beside_chats_nobody_is_disturbed(server: Server) -> None:
    asked = {"prompt": TEXTS[0], "max_tokens": 12, "temperature": 0}
    alone = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).json()["choices"][0]["text"]
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**asked, "n": 2}, timeout=60) as response:
        many = httpx.post(
            f"{server.url}/v1/embeddings", json={"input": [[7, token] for token in range(300)]}, timeout=60
        )
        response.read()
    assert [choice["text"] for choice in response.json()["choices"]] == [alone] * 2
    assert [entry["index"] for entry in many.json()["data"]] == list(range(300))
