"""What a machine would allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from loadgen.floor import Machine, ModelWork, least_seconds
from loadgen.load import RequestLoad
from tiny_models import make_tiny

MODEL = ModelWork(layer_weights=1000, head_weights=100, num_layers=2, q_size=8, kv_bytes=10)
FAST_MEMORY = Machine(read_bytes=1e30, operations=1.0)
FAST_PRODUCTS = Machine(read_bytes=1.0, operations=1e30)


def test_prompts_are_products() -> None:
    load = RequestLoad(concurrency=2, requests=6, prompt_tokens=50, output_tokens=1)
    products = 2 * (50 * 1000 + 100)
    attention = 2 * 4 * 8 * 50**2 / 2
    assert least_seconds(load, MODEL, FAST_MEMORY) == 6 * (products + attention)
    assert least_seconds(load, MODEL, FAST_PRODUCTS) < 1e-20


def test_what_is_shared_is_computed_once_and_attended_to_by_all() -> None:
    load = RequestLoad(concurrency=2, requests=6, prompt_tokens=5, shared_prefix_tokens=100, output_tokens=1)
    own = 2 * (5 * 1000 + 100) + 2 * 4 * 8 * (5 * 100 + 5**2 / 2)
    shared = 2 * (100 * 1000 + 100) + 2 * 4 * 8 * 100**2 / 2
    assert least_seconds(load, MODEL, FAST_MEMORY) == 6 * own + shared


def test_decodes_read_weights_and_context_once_for_all() -> None:
    load = RequestLoad(concurrency=2, requests=6, prompt_tokens=30, shared_prefix_tokens=100, output_tokens=21)
    in_cache = 100 + 2 * (30 + 21 / 2)
    assert least_seconds(load, MODEL, FAST_PRODUCTS) == pytest.approx(6 * 20 / 2 * (2 * 1100 + 10 * in_cache))


def test_many_decodes_are_products_too() -> None:
    assert MODEL.decode_seconds(FAST_MEMORY, 16, 1e9) == 2 * 1100 * 16


def test_the_model_is_read_from_its_folder(tmp_path: Path) -> None:
    model = make_tiny(tmp_path, "Llama")
    work, config = ModelWork.of(tmp_path), model.config
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2)
    assert work.layer_weights == layers
    assert work.head_weights == config.vocab_size * config.hidden_size
    assert work.kv_bytes == 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
