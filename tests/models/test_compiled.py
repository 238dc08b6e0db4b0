"""All layers in one compiled call: as exact as operation by operation, and the same whatever runs beside a request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from paged import unwritten
from tiny_models import make_tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from octavo.errors import ConfigError
from octavo.kernels.attention import PagedBatch
from octavo.kernels.cpu import int8, packing
from octavo.models import compiled
from octavo.models.compiled import CompiledLayers
from octavo.models.decoder import Decoder
from octavo.models.layer_stack import TorchLayers
from octavo.models.loader import load_model

WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 512}
WINDOW = {"sliding_window": 140}
# Heads of one shape, because each shape is compiled by itself; the last two have shapes of their own.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ("Qwen3", {}),
    "mistral-window": ("Mistral", WINDOW),
    "gemma2": ("Gemma2", WINDOW | {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 24}),
    "gemma3": (
        "Gemma3",
        WINDOW | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "wide-heads": ("Llama", {"head_dim": 80, "num_attention_heads": 6, "hidden_size": 96, "initializer_range": 0.08}),
    "no-groups": ("Llama", {"num_key_value_heads": 4, "intermediate_size": 32}),
}
LENGTH, BLOCK = 300, 4
PIECES = {
    "whole": (LENGTH,),
    "chunks": (5, 130, 1, 1, 163),
    "token by token at last": (LENGTH - 40, *(1,) * 40),
    "small chunks": (16, 17, 33, 2, 3, 64, 100, 65),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def make(name: str) -> tuple[Path, Any]:
        if name not in made:
            family, changes = MODELS[name]
            folder = tmp_path_factory.mktemp(name)
            model = make_tiny(folder, family, **WIDTHS | changes)
            # The oracle computes in float32 with the weights that are served.
            made[name] = folder, model.bfloat16().float()
        return made[name]

    return make


def load(folder: Path, *, compiled_layers: bool = True, quantization: str = "none", dtype: str = "bfloat16") -> Decoder:
    with pytest.MonkeyPatch.context() as patch:
        if not compiled_layers:
            patch.setattr(compiled, "fits", lambda *_, **__: False)
        decoder = load_model(folder, dtype=dtype, quantization=quantization)
    assert isinstance(decoder._layers, CompiledLayers if compiled_layers else TorchLayers)
    return decoder


def prompt(seed: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed))


class Cache:
    """Blocks for some sequences; what was never written is NaN, but for the null block."""

    def __init__(
        self,
        decoder: Decoder,
        num_seqs: int,
        length: int = LENGTH,
        *,
        kv_dtype: torch.dtype = torch.bfloat16,
        block_size: int = BLOCK,
    ) -> None:
        shape, self._decoder, self._block_size = decoder.shape, decoder, block_size
        columns = -(-length // block_size)
        ids = torch.randperm(num_seqs * columns, generator=torch.Generator().manual_seed(3)) + 1
        self.tables = ids.view(num_seqs, columns).int()
        size = (len(ids) + 1, 2, shape.num_kv_heads, block_size)
        self.layers = [unwritten(size, shape.head_dim, kv_dtype) for _ in range(shape.num_layers)]
        for layer in self.layers:
            layer[0] = 0

    def step(self, *work: tuple[int, Tensor, int]) -> list[Tensor]:
        """Hidden states of (sequence, its tokens, position of the first); those of one token come first."""
        decodes = sum(len(ids) == 1 for _, ids, _ in work)
        assert all(len(ids) == 1 for _, ids, _ in work[:decodes])
        rows, size = [seq for seq, _, _ in work], self._block_size
        positions = [torch.arange(start, start + len(ids)) for _, ids, start in work]
        lens = [len(ids) for _, ids, _ in work]
        slots = [
            self.tables[seq][at // size].long() * size + at % size for seq, at in zip(rows, positions, strict=True)
        ]
        batch = PagedBatch(
            block_tables=self.tables[rows],
            seq_lens=torch.tensor([start + len(ids) for _, ids, start in work], dtype=torch.int32),
            cu_query_lens=torch.tensor([0, *lens], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            slot_mapping=torch.cat(slots),
            num_decodes=decodes,
            max_query_len=max(lens),
            max_seq_len=max(start + len(ids) for _, ids, start in work),
        )
        ids = torch.cat([ids for _, ids, _ in work])
        hidden = self._decoder.forward(ids, torch.cat(positions), self.layers, [batch] * len(self.layers))
        return list(hidden.split(lens))

    def run(self, ids: Tensor, pieces: Sequence[int], seq: int = 0) -> Tensor:
        hidden, done = [], 0
        for piece in pieces:
            hidden += self.step((seq, ids[done : done + piece], done))
            done += piece
        return torch.cat(hidden)


def error(decoder: Decoder, hidden: Tensor, model: Any) -> float:
    """Root mean square of the logits' difference from the oracle's, in units of their spread."""
    with torch.no_grad():
        exact = model(prompt()[None]).logits[0]
    logits = decoder.logits(hidden)
    return float((logits - exact).square().mean().sqrt() / exact.std())


@pytest.mark.parametrize("name", MODELS)
def test_is_as_exact_as_operation_by_operation(name: str, models) -> None:
    folder, model = models(name)
    decoder, by_operation = load(folder), load(folder, compiled_layers=False)
    theirs = error(by_operation, Cache(by_operation, 1).run(prompt(), PIECES["chunks"]), model)
    for pieces in PIECES.values():
        ours = error(decoder, Cache(decoder, 1).run(prompt(), pieces), model)
        # Rounding alone is about a hundredth; what is computed wrong shows up as tenths.
        assert ours < min(1.2 * theirs, 0.04), (ours, theirs)


ROUNDING = {"float32": 2e-5, "float16": 4e-3}


# Two, since each is compiled for a minute; `tests/integration/test_greedy_equality.py` has the real model in float32.
@pytest.mark.parametrize(("name", "dtype"), [("gemma2", "float32"), ("wide-heads", "float16")])
def test_other_types_are_as_exact_as_their_numbers(name: str, dtype: str, models) -> None:
    folder, _ = models(name)
    kind, decoder = getattr(torch, dtype), load(folder, dtype=dtype)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).float()
    whole = Cache(decoder, 1, kv_dtype=kind).run(prompt(), (LENGTH,))
    assert error(decoder, whole, exact) < ROUNDING[dtype]
    for pieces in PIECES.values():
        for block_size in (BLOCK, 16):
            cache = Cache(decoder, 1, kv_dtype=kind, block_size=block_size)
            assert torch.equal(cache.run(prompt(), pieces), whole), (pieces, block_size)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "wide-heads"])
def test_with_kv_in_int8_it_is_as_exact_as_operation_by_operation(name: str, models) -> None:
    folder, model = models(name)
    decoder, by_operation = load(folder), load(folder, compiled_layers=False)
    theirs = error(by_operation, Cache(by_operation, 1, kv_dtype=torch.int8).run(prompt(), PIECES["chunks"]), model)
    whole = Cache(decoder, 1, kv_dtype=torch.int8).run(prompt(), (LENGTH,))
    assert error(decoder, whole, model) < min(1.2 * theirs, 0.06)
    for pieces in PIECES.values():
        for block_size in (BLOCK, 16):  # in bfloat16, tiles of K are multiplied where they lie in blocks of 16
            cache = Cache(decoder, 1, kv_dtype=torch.int8, block_size=block_size)
            assert torch.equal(cache.run(prompt(), pieces), whole), (pieces, block_size)


@pytest.mark.parametrize("name", ["llama", "biases", "gemma3"])
def test_in_int8_it_is_the_model_with_what_is_left_of_its_weights(name: str, models) -> None:
    folder, model = models(name)
    model = copy.deepcopy(model)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone())  # the embedding is not quantized
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            numbers, scales = int8.quantize(module.weight.data)
            module.weight.data = numbers * scales[:, None]
    decoder = load(folder, quantization="int8")
    for pieces in PIECES.values():
        ours = error(decoder, Cache(decoder, 1).run(prompt(), pieces), model)
        assert ours < 0.04, ours
    assert decoder.weight_bytes < 0.75 * load(folder).weight_bytes


@pytest.mark.parametrize(("name", "quantization"), [("llama", "none"), ("gemma3", "none"), ("llama", "int8")])
def test_a_request_does_not_depend_on_its_company(name: str, quantization: str, models) -> None:
    decoder = load(models(name)[0], quantization=quantization)
    together, prompts = Cache(decoder, 5), [prompt(seed) for seed in range(5)]
    starts = (0, 37, 120, 210, 299)
    for seq, start in enumerate(starts):
        if start:
            together.step((seq, prompts[seq][:start], 0))
    mixed = together.step(
        (4, prompts[4][299:], 299),
        (2, prompts[2][120:121], 120),
        (0, prompts[0][:150], 0),
        (1, prompts[1][37:40], 37),
        (3, prompts[3][210:], 210),
    )
    for (seq, begin, end), hidden in zip(
        [(4, 299, 300), (2, 120, 121), (0, 0, 150), (1, 37, 40), (3, 210, 300)], mixed, strict=True
    ):
        alone = Cache(decoder, 5)
        if begin:
            alone.step((seq, prompts[seq][:begin], 0))
        (by_itself,) = alone.step((seq, prompts[seq][begin:end], begin))
        assert torch.equal(hidden, by_itself), seq


@pytest.mark.parametrize("num_seqs", [2, 5, 20])
@pytest.mark.parametrize(
    ("name", "kv_dtype"),
    [("llama", torch.bfloat16), ("gemma3", torch.bfloat16), ("llama", torch.int8)],
    ids=["llama", "gemma3", "llama, KV in int8"],
)
def test_decodes_that_share_blocks_are_what_they_are_alone(
    name: str, kv_dtype: torch.dtype, num_seqs: int, models
) -> None:
    decoder, shared, tail = load(models(name)[0]), 260, 300
    prompts = [torch.cat((prompt()[:shared], prompt(seed)[shared:])) for seed in range(num_seqs)]
    together = Cache(decoder, num_seqs, kv_dtype=kv_dtype)
    together.tables[:, : shared // BLOCK] = together.tables[0, : shared // BLOCK]
    together.step((0, prompts[0][:shared], 0))
    # Some have just begun to differ, others are long past that.
    lengths = [shared + 1 + 11 * seq % (tail - shared - 1) for seq in range(num_seqs)]
    for seq, length in enumerate(lengths):
        together.step((seq, prompts[seq][shared:length], shared))
    hidden = together.step(*((seq, prompts[seq][length : length + 1], length) for seq, length in enumerate(lengths)))
    for seq, length in enumerate(lengths):
        alone = Cache(decoder, num_seqs, kv_dtype=kv_dtype)
        alone.step((seq, prompts[seq][:length], 0))
        assert torch.equal(alone.step((seq, prompts[seq][length : length + 1], length))[0], hidden[seq]), seq


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_how_a_prompt_is_cut_changes_nothing(name: str, models) -> None:
    decoder = load(models(name)[0])
    whole = Cache(decoder, 1).run(prompt(), (LENGTH,))
    for pieces in ((2, 298), (128, 172), (100, 33, 17, 150), *PIECES.values(), (1,) * LENGTH):
        assert torch.equal(Cache(decoder, 1).run(prompt(), pieces), whole), pieces


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads: int, models, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load(models("llama")[0])
    expected = Cache(decoder, 1).run(prompt(), PIECES["chunks"])
    monkeypatch.setattr(compiled, "workers_for", lambda _: threads)
    assert torch.equal(Cache(decoder, 1).run(prompt(), PIECES["chunks"]), expected)


def test_padding_is_not_written(models) -> None:
    """A slot below zero belongs to nobody: warming up reads the null block and writes nothing."""
    decoder = load(models("llama")[0])
    cache = Cache(decoder, 2)
    batch = PagedBatch(
        block_tables=torch.zeros((2, 3), dtype=torch.int32),
        seq_lens=torch.tensor([1, 3], dtype=torch.int32),
        cu_query_lens=torch.tensor([0, 1, 4], dtype=torch.int32),
        slot_mapping=torch.full((4,), -1),
        num_decodes=1,
        max_query_len=3,
        max_seq_len=3,
    )
    hidden = decoder.forward(torch.zeros(4).long(), torch.zeros(4).long(), cache.layers, [batch] * len(cache.layers))
    assert hidden.isfinite().all()
    for layer in cache.layers:
        assert (layer[0] == 0).all()
        assert layer[1:].isnan().all()


def test_layers_of_a_group_follow_its_own_tables(models) -> None:
    """Block tables that differ by layer, as those of windowed and full layers do."""
    decoder = load(models("gemma3")[0])
    ids, cache, other = prompt(length=40), Cache(decoder, 2, 40), Cache(decoder, 2, 40)
    expected = cache.run(ids, (39, 1))
    tables = [other.tables[1:], other.tables[:1], other.tables[1:].clone()]
    for begin, end in ((0, 39), (39, 40)):
        at = torch.arange(begin, end)
        batches = [
            PagedBatch(
                block_tables=table,
                seq_lens=torch.tensor([end], dtype=torch.int32),
                cu_query_lens=torch.tensor([0, end - begin], dtype=torch.int32),
                slot_mapping=table[0][at // BLOCK].long() * BLOCK + at % BLOCK,
                num_decodes=int(end - begin == 1),
                max_query_len=end - begin,
                max_seq_len=end,
            )
            for table in tables
        ]
        hidden = decoder.forward(ids[begin:end], at, other.layers, batches)
        assert torch.equal(hidden, expected[begin:end])


def test_what_it_cannot_run_is_left_to_others(models, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = models("llama")
    assert isinstance(load_model(folder, dtype="bfloat16", attention_backend="reference")._layers, TorchLayers)
    monkeypatch.setattr(packing, "_has_float16", lambda: False)
    assert isinstance(load_model(folder, dtype="float16")._layers, TorchLayers)
    with pytest.raises(ConfigError, match=r"--quantization int8.*only on CPUs.*not for this one in float16"):
        load_model(folder, dtype="float16", quantization="int8")
    with pytest.raises(ConfigError, match="with reference attention"):
        load_model(folder, dtype="bfloat16", attention_backend="reference", quantization="int8")
    with pytest.raises(ConfigError, match="quantization must be none or int8, not 'int4'"):
        load_model(folder, dtype="bfloat16", quantization="int4")
