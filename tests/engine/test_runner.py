"""What the runner does besides steps: blocks between the tiers that the options ask for."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.block_manager.tiers import Tier, Transfer
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.errors import ConfigError

DEVICE, HOST, DISK = Tier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The config of a tiny Llama, 2 layers × 2 × 2 heads × 16 × 4 B × 16 tokens = 8 KiB a block, and a folder `kv`."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "eos_token_id": 127,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "kv").mkdir()
    return tmp_path


def load(folder: Path, **options: Any) -> EngineCore:
    config = EngineConfig.of(load_format="dummy", dtype="float32", num_blocks=64, device="cpu", **options)
    return EngineCore.load(config, folder, name="tiny")


@pytest.mark.parametrize(
    ("host", "disk", "tiers"),
    [(0, 0, [DEVICE]), (5, 0, [DEVICE, HOST]), (0, 3, [DEVICE, DISK]), (5, 3, [DEVICE, HOST, DISK])],
)
def test_options_make_tiers_that_can_be_measured(folder: Path, host: int, disk: int, tiers: list[Tier]) -> None:
    where = {"swap_dir": str(folder / "kv"), "swap_disk": disk * 8192} if disk else {}
    timings = load(folder, swap_space=host * 8192, **where).runner.measure_transfers()
    sizes = {DEVICE: 64, HOST: host, DISK: disk}
    assert {timing[:2]: timing.num_blocks for timing in timings} == {
        (source, target): min(sizes[source], sizes[target]) for source, target in permutations(tiers, 2)
    }


def test_transfers_are_run_and_told(folder: Path) -> None:
    runner = load(folder, swap_space=4 * 8192, swap_dir=str(folder / "kv"), swap_disk=4 * 8192).runner
    layer = runner._kv_cache.layers[1]
    layer[7].copy_(torch.arange(layer[7].numel()).view_as(layer[7]))
    unwritten = Transfer(DISK, 2, HOST, 1)
    ways = [(DEVICE, 7, HOST, 3), (HOST, 3, DISK, 1), (DISK, 1, DEVICE, 9)]
    outcome = runner.transfer([unwritten, *(Transfer(*way) for way in ways)])
    assert outcome.lost == (unwritten,)
    assert [timing[:3] for timing in outcome.timings] == [(DEVICE, HOST, 1), (HOST, DISK, 1), (DISK, DEVICE, 1)]
    assert torch.equal(layer[9], layer[7])


def test_a_folder_that_does_not_do_is_told_at_start(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--swap-dir .*/nowhere: No such file"):
        load(folder, swap_dir=str(folder / "nowhere"), swap_disk=4 * 8192)
