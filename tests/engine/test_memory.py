"""The KV pool's size, and the messages when it cannot be had."""

from __future__ import annotations

import pytest

from octavo.config import EngineConfig
from octavo.engine.memory import free_host_memory, plan_pool, report
from octavo.errors import ConfigError, MemoryTooSmallError
from octavo.models.shape import ModelShape, shape_from_config

GIB = 2**30


@pytest.fixture
def shape() -> ModelShape:
    """2 layers × 2 × 2 KV heads × 64 × 2 B = 1,024 B a token, 16 KiB a block of 16."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
    }
    return shape_from_config(config, {})


def test_the_pool_takes_its_share_of_what_is_free(shape: ModelShape) -> None:
    config = EngineConfig.of(max_num_seqs=1024, max_num_batched_tokens=1024)
    assert plan_pool(config, shape, free=GIB, device="cpu").num_blocks == GIB // 2 // 16384
    assert plan_pool(config, shape, free=GIB, device="cuda").num_blocks == int(GIB * 0.9) // 16384
    custom = EngineConfig.of(max_num_seqs=1024, max_num_batched_tokens=1024, memory_ratio=0.25)
    assert plan_pool(custom, shape, free=GIB, device="cpu").num_blocks == GIB // 4 // 16384


def test_no_more_blocks_than_the_batch_can_use(shape: ModelShape) -> None:
    plan = plan_pool(EngineConfig.of(max_num_seqs=4), shape, free=64 * GIB, device="cpu")
    assert plan.num_blocks == 4 * 4096 // 16


def test_told_memory_and_told_blocks(shape: ModelShape) -> None:
    assert plan_pool(EngineConfig.of(memory=10 * 16384 + 5), shape, free=GIB, device="cpu").num_blocks == 10
    assert plan_pool(EngineConfig.of(num_blocks=77), shape, free=GIB, device="cpu").num_blocks == 77


def test_the_longest_sequence_is_what_the_pool_holds(shape: ModelShape) -> None:
    assert plan_pool(EngineConfig.of(num_blocks=10), shape, free=GIB, device="cpu").max_model_len == 161
    assert plan_pool(EngineConfig.of(num_blocks=1000), shape, free=GIB, device="cpu").max_model_len == 4096


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_blocks": 100_000}, MemoryTooSmallError, "--num-blocks 100000 needs 1.53 GiB and 1.00 GiB are free"),
        ({"memory": 2 * GIB}, MemoryTooSmallError, "at most 65536 blocks fit"),
        ({"memory": 100}, MemoryTooSmallError, "less than one KV block of 16,384 bytes"),
        ({"num_blocks": 10, "max_model_len": 1000}, MemoryTooSmallError, "lower it to 161"),
        ({"max_model_len": 5000}, ConfigError, "more than the 4096 positions"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(
    shape: ModelShape, options: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_pool(EngineConfig.of(**options), shape, free=GIB, device="cpu")


def test_a_machine_without_memory(shape: ModelShape) -> None:
    with pytest.raises(MemoryTooSmallError, match="less than one KV block"):
        plan_pool(EngineConfig(), shape, free=100, device="cpu")


def test_the_report_shows_the_arithmetic(shape: ModelShape) -> None:
    config = EngineConfig.of(num_blocks=1000)
    lines = "\n".join(report(plan_pool(config, shape, free=GIB, device="cpu"), config, shape, name="tiny", where="CPU"))
    for part in ("16,384 B", "1,000 blocks", "16,000 tokens", "31 of 512", "7 of 2,048", "3 of 4,096", "tiny"):
        assert part in lines


def test_free_memory_is_plausible() -> None:
    assert 2**20 < free_host_memory() < 2**50
