"""The KV pool's size, and the messages when it cannot be had."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.config import CacheConfig, EngineConfig, TenantConfig
from octavo.engine.kv_cache import KVCache
from octavo.engine.memory import PoolPlan, free_host_memory, plan_pool, report
from octavo.errors import ConfigError, MemoryTooSmallError
from octavo.kernels.reference import ReferenceBackend
from octavo.models import processor
from octavo.models.shape import ModelShape, shape_from_config

GIB = 2**30
BLOCK = 16384


@pytest.fixture(autouse=True)
def processor_with_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are those of 16-bit numbers, whatever this machine computes in."""
    monkeypatch.setattr(processor, "_flags", frozenset)


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
    assert plan_pool(config, shape, free=GIB, free_host=GIB, device="cpu").num_blocks == GIB // 2 // 16384
    assert plan_pool(config, shape, free=GIB, free_host=GIB, device="cuda").num_blocks == int(GIB * 0.9) // 16384
    custom = EngineConfig.of(max_num_seqs=1024, max_num_batched_tokens=1024, memory_ratio=0.25)
    assert plan_pool(custom, shape, free=GIB, free_host=GIB, device="cpu").num_blocks == GIB // 4 // 16384


def test_a_block_of_kv_in_int8_is_as_large_as_the_tensors_have_it(shape: ModelShape) -> None:
    config = EngineConfig.of(num_blocks=10, kv_cache_dtype="int8")
    plan = plan_pool(config, shape, free=GIB, free_host=GIB, device="cpu")
    cache = KVCache(
        groups=plan.groups, num_blocks=plan.num_blocks, num_kv_heads=shape.num_kv_heads, block_size=16,
        head_dim=shape.head_dim, dtype=torch.int8, device=torch.device("cpu"), backend=ReferenceBackend(),
    )  # fmt: skip
    assert plan.block_bytes == cache.block_bytes == 2 * 2 * 2 * 16 * (64 + 4)


def test_no_more_blocks_than_the_batch_can_use(shape: ModelShape) -> None:
    plan = plan_pool(EngineConfig.of(max_num_seqs=4), shape, free=64 * GIB, free_host=64 * GIB, device="cpu")
    assert plan.num_blocks == 4 * 4096 // 16


def test_told_memory_and_told_blocks(shape: ModelShape) -> None:
    assert (
        plan_pool(EngineConfig.of(memory=10 * 16384 + 5), shape, free=GIB, free_host=GIB, device="cpu").num_blocks == 10
    )
    assert plan_pool(EngineConfig.of(num_blocks=77), shape, free=GIB, free_host=GIB, device="cpu").num_blocks == 77


def test_the_longest_sequence_is_what_the_pool_holds(shape: ModelShape) -> None:
    assert plan_pool(EngineConfig.of(num_blocks=10), shape, free=GIB, free_host=GIB, device="cpu").max_model_len == 161
    assert (
        plan_pool(EngineConfig.of(num_blocks=1000), shape, free=GIB, free_host=GIB, device="cpu").max_model_len == 4096
    )


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
        plan_pool(EngineConfig.of(**options), shape, free=GIB, free_host=GIB, device="cpu")


def test_a_machine_without_memory(shape: ModelShape) -> None:
    with pytest.raises(MemoryTooSmallError, match="less than one KV block"):
        plan_pool(EngineConfig(), shape, free=100, free_host=100, device="cpu")


def test_the_report_shows_the_arithmetic(shape: ModelShape) -> None:
    config = EngineConfig.of(num_blocks=1000)
    lines = "\n".join(
        report(
            plan_pool(config, shape, free=GIB, free_host=GIB, device="cpu"),
            config,
            shape,
            name="tiny",
            where="CPU",
            dtype="bfloat16",
            weight_bytes=3 * 2**20,
        )
    )
    for part in ("16,384 B", "1,000 blocks", "16,000 tokens", "31 of 512", "7 of 2,048", "3 of 4,096", "tiny"):
        assert part in lines


def tiers(
    shape: ModelShape, *, device: str = "cuda", free_host: int = 64 * GIB, num_blocks: int = 10, **options: Any
) -> PoolPlan:
    config = EngineConfig.of(num_blocks=num_blocks, **options)
    return plan_pool(config, shape, free=GIB, free_host=free_host, device=device)


class TestTiers:
    def test_a_gpu_has_a_host_tier_unless_told_otherwise(self, shape: ModelShape) -> None:
        assert tiers(shape).num_host_blocks == 4 * GIB // BLOCK
        assert tiers(shape, free_host=8 * GIB).num_host_blocks == 2 * GIB // BLOCK
        assert tiers(shape, free_host=4 * BLOCK - 1).num_host_blocks == 0
        assert tiers(shape, free_host=-GIB).num_host_blocks == 0
        assert tiers(shape, swap_space=0).num_host_blocks == 0
        assert tiers(shape).num_disk_blocks == 0

    def test_a_cpu_has_none_unless_asked_for(self, shape: ModelShape) -> None:
        assert tiers(shape, device="cpu").num_host_blocks == 0
        assert tiers(shape, device="cpu", swap_space=GIB).num_host_blocks == GIB // BLOCK

    def test_told_bytes_are_whole_blocks(self, shape: ModelShape) -> None:
        plan = tiers(shape, swap_space=7 * BLOCK - 1, swap_dir="/somewhere", swap_disk=9 * BLOCK + 1)
        assert (plan.num_host_blocks, plan.num_disk_blocks) == (6, 9)

    def test_a_disk_tier_needs_no_host_tier(self, shape: ModelShape) -> None:
        plan = tiers(shape, device="cpu", swap_dir="/somewhere", swap_disk=9 * BLOCK)
        assert (plan.num_host_blocks, plan.num_disk_blocks) == (0, 9)

    def test_on_a_cpu_the_pool_comes_first(self, shape: ModelShape) -> None:
        free = 15 * BLOCK
        assert tiers(shape, device="cpu", free_host=free, swap_space=5 * BLOCK).num_host_blocks == 5
        assert tiers(shape, device="cuda", free_host=free, swap_space=15 * BLOCK).num_host_blocks == 15
        with pytest.raises(
            MemoryTooSmallError, match=r"--swap-space 0.1 MiB does not fit: 0.1 MiB of .* beside .* at most 5 blocks"
        ):
            tiers(shape, device="cpu", free_host=free, swap_space=5 * BLOCK + 1)

    def test_swap_space_that_does_not_fit(self, shape: ModelShape) -> None:
        words = r"--swap-space 2.00 GiB does not fit: 1.00 GiB of host memory are free; at most 65536 blocks fit"
        with pytest.raises(MemoryTooSmallError, match=words):
            tiers(shape, swap_space=2 * GIB, free_host=GIB)

    @pytest.mark.parametrize(
        "options", [{"swap_space": BLOCK - 1}, {"swap_disk": BLOCK - 1, "swap_dir": "/somewhere"}], ids=str
    )
    def test_less_than_one_block(self, shape: ModelShape, options: dict[str, Any]) -> None:
        name = next(iter(options)).replace("_", "-")
        with pytest.raises(MemoryTooSmallError, match=f"--{name} 16383 is less than one KV block of 16,384 bytes"):
            tiers(shape, **options)

    def test_the_report_names_those_there_are(self, shape: ModelShape) -> None:
        def line(**options: Any) -> list[str]:
            config = EngineConfig.of(num_blocks=10, **options)
            plan = plan_pool(config, shape, free=GIB, free_host=GIB, device="cpu")
            return [
                line
                for line in report(
                    plan, config, shape, name="tiny", where="CPU", dtype="bfloat16", weight_bytes=3 * 2**20
                )
                if "tiers" in line
            ]

        disk = {"swap_dir": "/somewhere", "swap_disk": GIB}
        assert line() == []
        assert line(swap_space=64 * BLOCK) == ["KV tiers     64 blocks (1.0 MiB) host memory"]
        assert line(swap_space=64 * BLOCK, **disk) == [
            "KV tiers     64 blocks (1.0 MiB) host memory · 65,536 blocks (1.00 GiB) disk in /somewhere"
        ]
        assert line(**disk) == ["KV tiers     65,536 blocks (1.00 GiB) disk in /somewhere"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"swap_space": -1}, "--swap-space must not be negative, not -1"),
            ({"swap_disk": -5, "swap_dir": "/somewhere"}, "--swap-disk must not be negative, not -5"),
            ({"swap_disk": 77}, "--swap-disk 77 needs a folder to lie in; name it with --swap-dir"),
            ({"swap_disk": 77, "swap_dir": ""}, "--swap-disk 77 needs a folder"),
            ({"swap_dir": "/somewhere"}, "--swap-dir /somewhere needs a size, such as --swap-disk 20GiB"),
        ],
    )
    def test_contradictions(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            CacheConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preemption": "swap"}, "--preemption swap needs a place to go to"),
        (
            {"tenants": (TenantConfig(name="a", floor=6), TenantConfig(name="b", floor=5))},
            r"the floors \(a 6, b 5\) add up to 11 of 10 blocks",
        ),
    ],
)
def test_what_these_blocks_do_not_allow(shape: ModelShape, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_pool(EngineConfig.of(num_blocks=10, **options), shape, free=GIB, free_host=GIB, device="cpu")
    swap = EngineConfig.of(num_blocks=10, preemption="swap", swap_space=BLOCK)
    assert plan_pool(swap, shape, free=GIB, free_host=GIB, device="cpu").num_host_blocks == 1


def test_free_memory_is_plausible() -> None:
    assert 2**20 < free_host_memory() < 2**50
