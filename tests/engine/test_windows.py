"""Models with sliding-window layers in a paged pool: the same tokens as transformers', in fewer blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import make_tiny

from octavo.block_manager.windowed import WindowedBlockManager
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest, packed
from octavo.errors import ConfigError
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.streams import split_stream

NEW_TOKENS = 24
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full and windowed layers": (
        "Gemma3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 12,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "as many of each": ("Gemma2", {"num_hidden_layers": 4, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "windowed layers only": ("Mistral", {"sliding_window": 10}),
    "padded groups": (
        "Qwen2",
        {
            "head_dim": 12,
            "num_hidden_layers": 5,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 3,
        },
    ),
}


class Model(NamedTuple):
    """A saved model, and what transformers says to some prompts."""

    folder: Path
    prompts: list[list[int]]
    expected: list[list[int]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    family, changes = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(family)
    oracle = make_tiny(folder, family, **{"max_position_embeddings": 256, **changes})
    shared = [(7 * i) % 90 + 3 for i in range(40)]
    prompts = [[*shared[:length], 3 + length % 90, 5] for length in (1, 6, 20, 33, 39, 40)]
    prompts.append([(11 * i) % 90 + 3 for i in range(90)])
    return Model(folder, prompts, [_continuation(oracle, prompt) for prompt in prompts])


def _continuation(oracle: Any, prompt: list[int]) -> list[int]:
    # Step by step and without a cache, so that nothing but the model itself is compared with.
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            tokens.append(int(oracle(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def load(folder: Path, **options: Any) -> EngineCore:
    config = EngineConfig.of(model=str(folder), **{"dtype": "float32", "max_num_seqs": 4, **options})
    return EngineCore.load(config, folder, name="tiny")


def generate(engine: EngineCore, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    outputs: dict[int, list[int]] = {key: [] for key in range(1, len(prompts) + 1)}
    for key, prompt in enumerate(prompts, 1):
        engine.add(AddRequest("", packed(prompt), sampling, key=key))
    while engine.has_work:
        result = engine.step()
        for stream, token in zip(result.streams.tolist(), result.tokens.tolist(), strict=True):
            outputs[split_stream(stream)[0]].append(token)
        assert engine.check_integrity() == []
    return list(outputs.values())


GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)


@pytest.mark.parametrize(
    ("block_size", "chunk", "prefix_caching"),
    [(1, 5, True), (4, 5, True), (4, 5, False), (4, 256, True), (16, 5, True), (16, 256, False)],
)
def test_equals_transformers(model: Model, block_size: int, chunk: int, prefix_caching: bool) -> None:
    engine = load(
        model.folder,
        block_size=block_size,
        num_blocks=2048 // block_size,
        max_num_batched_tokens=chunk,
        prefix_caching=prefix_caching,
    )
    assert generate(engine, model.prompts, GREEDY) == model.expected
    # The second time the first time's blocks are there.
    assert generate(engine, model.prompts, GREEDY) == model.expected
    assert not prefix_caching or engine.stats().prefix_hits["device"]


def test_equals_transformers_when_blocks_run_out(model: Model) -> None:
    manager = load(model.folder, block_size=4, num_blocks=500, max_num_batched_tokens=8).scheduler.manager
    one = manager.most_blocks(90 + NEW_TOKENS)
    engine = load(
        model.folder, block_size=4, num_blocks=one + 6, max_num_batched_tokens=8, lookahead=0, max_model_len=120
    )
    assert generate(engine, model.prompts * 2, GREEDY) == model.expected * 2
    assert engine.stats().num_preemptions > 0


def test_siblings_share_their_windows(model: Model) -> None:
    engine = load(model.folder, block_size=4, num_blocks=400)
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, n=3)
    engine.add(AddRequest("", packed(model.prompts[-1]), sampling, key=1))
    outputs: dict[tuple[int, int], list[int]] = {}
    while engine.has_work:
        result = engine.step()
        for stream, token in zip(result.streams.tolist(), result.tokens.tolist(), strict=True):
            outputs.setdefault(split_stream(stream), []).append(token)
        assert engine.check_integrity() == []
    assert list(outputs.values()) == [model.expected[-1]] * 3
    assert engine.stats().forks == 2


def test_what_lies_behind_the_window_is_given_back(model: Model) -> None:
    engine = load(model.folder, block_size=4, num_blocks=400, max_num_batched_tokens=8)
    manager = engine.scheduler.manager
    assert isinstance(manager, WindowedBlockManager)
    engine.add(AddRequest("", packed(model.prompts[-1]), GREEDY, key=1))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, manager.pool.counts.used)
    assert most <= manager.most_blocks(90 + NEW_TOKENS)
    assert most < manager.blocks_per_column * manager.columns_for(90 + NEW_TOKENS)
    assert manager.slid > 0
    assert engine.stats().device.used == 0


def test_a_window_that_holds_the_longest_sequence_is_none(model: Model) -> None:
    engine = load(model.folder, max_model_len=7)
    assert not isinstance(engine.scheduler.manager, WindowedBlockManager)


def test_swapping_is_refused_for_now(model: Model) -> None:
    with pytest.raises(ConfigError, match="sliding-window layers"):
        load(model.folder, swap_space=2**20)


def test_the_report_tells_what_windows_cost(model: Model) -> None:
    report = load(model.folder, num_blocks=100).info.report
    assert any(line.startswith("windows ") for line in report)
