"""A prompt's vector is the same however the prompt is cut, preempted or cached, and no token counts twice in a mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_request
from tiny_models import make_tiny

from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest, packed
from octavo.engine.pooling import Pooler
from octavo.scheduler.plan import Embedding, StepPlan
from octavo.scheduler.request import Sequence
from octavo.scheduler.rows import Rows
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.streams import split_stream

KINDS = ("last", "mean")
Vectors = dict[int, list[float]]

# ── the pooler ──────────────────────────────────────────────────────────────────────────────────────────────


def rows_of(*kinds: str | None, length: int = 5) -> Rows:
    """A row for each kind of pooling, from the last row down."""
    rows = Rows(len(kinds), 16)
    for number, kind in enumerate(kinds):
        request = make_request(number, [1] * length, pooling=kind, max_tokens=1)
        rows.occupy(Sequence(request, 0, request.prompt), 0)
    return rows


def step(*parts: tuple[int, int, int]) -> StepPlan:
    """A plan of (row, start, tokens) parts."""
    rows, starts, lens = (np.array(column, dtype=np.int32) for column in zip(*parts, strict=True))
    nothing = np.empty(0, dtype=np.int32)
    return StepPlan(0, rows, starts, lens, 0, nothing, nothing)


def hidden(*values: float) -> torch.Tensor:
    return torch.tensor([[value, -value] for value in values], dtype=torch.bfloat16)


def told(embeddings: tuple[Embedding, ...]) -> Vectors:
    assert all(embedding.vector.dtype == np.float32 for embedding in embeddings)
    return {split_stream(embedding.stream)[0]: embedding.vector.tolist() for embedding in embeddings}


def test_chunks_of_several_prompts() -> None:
    pooler = Pooler(rows_of("last", None, "mean"))  # rows 0, 1, 2
    assert told(pooler.take(step((0, 0, 2), (1, 0, 1), (2, 0, 1)), hidden(1, 2, 50, 3))) == {}
    assert told(pooler.take(step((1, 1, 4), (2, 1, 3)), hidden(50, 50, 50, 50, 5, 6, 7))) == {}
    done = told(pooler.take(step((2, 4, 1), (1, 5, 1), (0, 2, 3)), hidden(9, 50, 4, 5, 6)))
    assert done == {0: [6.0, -6.0], 2: [6.0, -6.0]}


def test_what_is_computed_again_counts_once() -> None:
    pooler = Pooler(rows_of("mean"))
    pooler.take(step((0, 0, 3)), hidden(100, 100, 100))
    pooler.take(step((0, 0, 2)), hidden(1, 2))
    assert told(pooler.take(step((0, 2, 3)), hidden(3, 4, 5))) == {0: [3.0, -3.0]}


def test_a_long_prompts_sum_is_not_rounded_as_its_states_are() -> None:
    pooler = Pooler(rows_of("mean", length=12))
    pooler.take(step((0, 0, 6)), hidden(*[256.0] * 6))
    assert told(pooler.take(step((0, 6, 6)), hidden(*[1.0] * 6))) == {0: [128.5, -128.5]}


# ── in the engine ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny(path, "Llama")
    return path


def load(folder: Path, **options: Any) -> EngineCore:
    config = EngineConfig.of(dtype="float32", device="cpu", **{"num_blocks": 64, "block_size": 4, **options})
    return EngineCore.load(config, folder, name="tiny")


def add(core: EngineCore, key: int, prompt: list[int], priority: int = 0, **sampling: Any) -> None:
    params = SamplingParams(temperature=0.0, **{"max_tokens": 1, **sampling})
    core.add(AddRequest(str(key), packed(prompt), params, priority=priority, key=key))


def run(core: EngineCore) -> Vectors:
    vectors: Vectors = {}
    while core.has_work:
        vectors |= told(core.step().embeddings)
        assert core.check_integrity() == []
    return vectors


def prompts() -> list[list[int]]:
    chance = np.random.default_rng(0)
    shared = chance.integers(3, 97, 12).tolist()
    return [shared[:length] + chance.integers(3, 97, length + 3).tolist() for length in (0, 5, 9, 12, 12)]


def embed(core: EngineCore, kind: str) -> list[list[float]]:
    for key, prompt in enumerate(prompts()):
        add(core, key, prompt, pooling=kind)
    vectors = run(core)
    return [vectors[key] for key in range(len(prompts()))]


@pytest.fixture(scope="module")
def states(folder: Path) -> list[np.ndarray]:
    """transformers' hidden states of the prompts."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).last_hidden_state[0].numpy() for prompt in prompts()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_batched_tokens": 5, "max_num_seqs": 5}, {"prefix_caching": False}, {"num_blocks": 16}],
    ids=["at once", "in chunks", "uncached", "one by one"],
)
def test_vectors_are_those_of_transformers(
    folder: Path, states: list[np.ndarray], kind: str, options: dict[str, Any]
) -> None:
    core = load(folder, **options)
    expected = [state[-1] if kind == "last" else state.mean(axis=0) for state in states]
    for _ in range(2):  # the second time, all is cached
        np.testing.assert_allclose(embed(core, kind), expected, atol=1e-4)
    assert core.stats().device.used == 0


def test_beside_a_beam_search(folder: Path, states: list[np.ndarray]) -> None:
    core = load(folder)
    add(core, 9, [5, 6, 7], beam_width=2, max_tokens=6)
    core.step()
    np.testing.assert_allclose(embed(core, "last"), [state[-1] for state in states], atol=1e-4)


def test_a_mean_reads_no_cache_and_fills_it(folder: Path) -> None:
    core = load(folder)
    embed(core, "mean")
    embed(core, "mean")
    assert core.stats().prefix_hits["device"] == 0
    assert core.stats().prefix_misses["not_read"] == 2 * len(prompts())
    embed(core, "last")
    assert core.stats().prefix_hits["device"] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tier", [{"preemption": "recompute"}, {"preemption": "swap", "swap_space": 2**20}])
def test_who_gives_way_in_mid_prompt_starts_over(
    folder: Path, states: list[np.ndarray], kind: str, tier: dict[str, Any]
) -> None:
    core = load(
        folder, num_blocks=8, max_model_len=32, max_num_batched_tokens=6, max_num_seqs=4, policy="priority", **tier
    )
    add(core, 0, prompts()[3], priority=5, pooling=kind)
    core.step()
    core.step()
    assert core.scheduler.rows.num_computed.max() == 12
    add(core, 1, [7] * 20, max_tokens=4, ignore_eos=True)
    (vector,) = run(core).values()
    expected = states[3][-1] if kind == "last" else states[3].mean(axis=0)
    np.testing.assert_allclose(vector, expected, atol=1e-4)
    assert core.stats().num_preemptions == 1


def test_a_step_that_failed_counts_for_nothing(
    folder: Path, states: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    core, failures = load(folder, max_num_batched_tokens=6, max_num_seqs=6), iter([False, False, False, True])
    take = core.runner._pooler.take

    def fail_after(plan: StepPlan, hidden: torch.Tensor) -> tuple[Embedding, ...]:
        embeddings = take(plan, hidden)
        if next(failures, False):
            raise RuntimeError("after the sum")
        return embeddings

    monkeypatch.setattr(core.runner._pooler, "take", fail_after)
    add(core, 0, prompts()[2], pooling="mean")
    add(core, 1, prompts()[0], pooling="mean")
    vectors = run(core)
    assert next(failures, None) is None
    np.testing.assert_allclose(vectors[0], states[2].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(vectors[1], states[0].mean(axis=0), atol=1e-4)
