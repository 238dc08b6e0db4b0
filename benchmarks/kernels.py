"""Measures the attention kernels against what the machine can do, both in the same run.

    python benchmarks/kernels.py --device cpu --json kernels.json

Decode is bound by reading K and V, so it is given in GB/s of K and V beside the measured read bandwidth; prefill is
bound by arithmetic, so it is given in GFLOP/s beside a matrix product's. Each figure is the best of many runs: other
work on the machine can only slow it down.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from octavo.kernels.attention import Backend, PagedBatch, select_backend, warm_up
from octavo.kernels.reference import gather_context

DECODES = [(1, 16), (1, 512), (1, 4096), (4, 512), (16, 128), (16, 512), (16, 2048), (64, 512)]  # batch, context
PREFILLS = [(16, 0), (128, 0), (512, 0), (2048, 0), (256, 1792)]  # new tokens, context before them
WRITES = [1, 16, 64, 512]  # tokens
CACHE_BYTES = 256 * 2**20  # layers are visited in turn, so that no K or V is still in a cache


@dataclass(frozen=True)
class Model:
    """One attention layer."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)


def best_seconds(run: Callable[[], object], device: torch.device, budget: float = 0.5) -> float:
    """The shortest of the runs that fit the budget (seconds), at least five."""
    best, until, runs = float("inf"), time.perf_counter() + budget, 0
    run()
    while runs < 5 or time.perf_counter() < until:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a large sum."""
    numbers = torch.ones(CACHE_BYTES // 4, device=device)
    return CACHE_BYTES / best_seconds(numbers.sum, device)


def matmul_rate(model: Model) -> float:
    """Flops per second of a large matrix product in the model's dtype."""
    a, b = model.normal(2048, 2048), model.normal(2048, 2048)
    return 2 * 2048**3 / best_seconds(lambda: a @ b, model.device)


def make_layers(model: Model, num_seqs: int, context: int, most: int) -> tuple[list[Tensor], Tensor]:
    """KV caches of several layers, and block tables in random order."""
    blocks = -(-context // model.block_size)
    shape = (num_seqs * blocks + 1, 2, model.num_kv_heads, model.block_size, model.head_dim)
    tables = (torch.randperm(num_seqs * blocks) + 1).view(num_seqs, blocks).to(torch.int32)
    layer_bytes = torch.Size(shape).numel() * model.dtype.itemsize
    count = max(1, min(most, CACHE_BYTES // layer_bytes))
    return [model.normal(*shape) for _ in range(count)], tables.to(model.device)


def make_batch(model: Model, tables: Tensor, context: int, query_len: int) -> PagedBatch:
    num_seqs = tables.shape[0]
    ints = {"dtype": torch.int32, "device": model.device}
    return PagedBatch(
        block_tables=tables,
        seq_lens=torch.full((num_seqs,), context, **ints),
        cu_query_lens=torch.arange(num_seqs + 1, **ints) * query_len,
        slot_mapping=torch.empty(0, dtype=torch.int64, device=model.device),
        num_decodes=num_seqs if query_len == 1 else 0,
        max_query_len=query_len,
        max_seq_len=context,
    )


def gather_and_sdpa(q: Tensor, kv_cache: Tensor, tables: Tensor, context: int, scale: float) -> Tensor:
    """What a decode step costs without paged kernels: a dense copy, then torch's attention."""
    dense = kv_cache[tables.long()].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[..., :context, :]
    return scaled_dot_product_attention(q.unsqueeze(2), dense[0], dense[1], scale=scale, enable_gqa=True)


def measure_decode(kernels: Backend, model: Model, num_seqs: int, context: int) -> dict[str, float]:
    layers, tables = make_layers(model, num_seqs, context, most=30)
    batch = make_batch(model, tables, context, query_len=1)
    q, scale = model.normal(num_seqs, model.num_q_heads, model.head_dim), model.head_dim**-0.5
    out = torch.empty_like(q)

    def paged() -> None:
        for layer in layers:
            kernels.attend(q, layer, batch, scale=scale, out=out)

    def dense() -> None:
        for layer in layers:
            gather_and_sdpa(q, layer, tables, context, scale)

    size = num_seqs * context * 2 * model.num_kv_heads * model.head_dim * model.dtype.itemsize
    seconds, rival = (best_seconds(run, model.device) / len(layers) for run in (paged, dense))
    return {
        "batch": num_seqs,
        "context": context,
        "us": seconds * 1e6,
        "gb_s": size / seconds / 1e9,
        "sdpa_us": rival * 1e6,
    }


def measure_prefill(kernels: Backend, model: Model, query_len: int, past: int) -> dict[str, float]:
    context = past + query_len
    layers, tables = make_layers(model, 1, context, most=1)
    batch = make_batch(model, tables, context, query_len)
    q, scale = model.normal(query_len, model.num_q_heads, model.head_dim), model.head_dim**-0.5
    k, v = gather_context(layers[0], tables[0], context)
    dense = [x.transpose(0, 1).unsqueeze(0).contiguous() for x in (q, k, v)]
    mask = None if past == 0 else torch.ones(query_len, context, dtype=torch.bool, device=model.device).tril(past)

    def paged() -> None:
        kernels.attend(q, layers[0], batch, scale=scale)

    def contiguous() -> None:
        scaled_dot_product_attention(*dense, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True)

    flops = 4 * model.num_q_heads * model.head_dim * (query_len * past + query_len * (query_len + 1) / 2)
    seconds, rival = (best_seconds(run, model.device) for run in (paged, contiguous))
    return {
        "new": query_len,
        "past": past,
        "us": seconds * 1e6,
        "gflop_s": flops / seconds / 1e9,
        "sdpa_us": rival * 1e6,
    }


def measure_write(kernels: Backend, model: Model, num_tokens: int) -> dict[str, float]:
    layers, _ = make_layers(model, 1, 4096, most=1)
    k, v = (model.normal(num_tokens, model.num_kv_heads, model.head_dim) for _ in range(2))
    slots = (torch.randperm(4096)[:num_tokens] + model.block_size).to(model.device)
    reference = select_backend(model.device, "reference")
    paged, plain = (
        best_seconds(lambda b=backend: b.write_kv(k, v, layers[0], slots), model.device, budget=0.1)
        for backend in (kernels, reference)
    )
    return {"tokens": num_tokens, "us": paged * 1e6, "index_us": plain * 1e6}


def show(title: str, rows: list[dict[str, float]]) -> None:
    print(f"\n{title}\n" + "".join(f"{name:>10}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:>10.1f}" if isinstance(value, float) else f"{value:>10}" for value in row.values()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--backend", default="auto", help="auto, triton, cpu or reference")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--heads", default="9:3", help="query heads : KV heads")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse_arguments()
    q_heads, kv_heads = map(int, options.heads.split(":"))
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model = Model(q_heads, kv_heads, options.head_dim, options.block_size, dtype, device)
    kernels = select_backend(device, options.backend)
    start = time.perf_counter()
    warm_up(kernels, **asdict(model))
    figures = {
        "model": {name: str(value) for name, value in asdict(model).items()} | {"backend": kernels.name},
        "threads": torch.get_num_threads(),
        "warm_up_s": time.perf_counter() - start,
        "read_gb_s": read_bandwidth(device) / 1e9,
        "matmul_gflop_s": matmul_rate(model) / 1e9,
        "decode": [measure_decode(kernels, model, *case) for case in DECODES],
        "prefill": [measure_prefill(kernels, model, *case) for case in PREFILLS],
        "write": [measure_write(kernels, model, tokens) for tokens in WRITES],
    }
    print(", ".join(f"{name} {value}" for name, value in figures["model"].items()))
    print(f"warm-up {figures['warm_up_s']:.1f} s, read {figures['read_gb_s']:.1f} GB/s, ", end="")
    print(f"matrix product {figures['matmul_gflop_s']:.0f} GFLOP/s, {figures['threads']} threads")
    show("decode, per layer (sdpa: gather, then torch's attention)", figures["decode"])
    show("prefill, per layer (sdpa: torch's attention on K and V that are already dense)", figures["prefill"])
    show("write_kv, per layer (index: torch's indexed assignment)", figures["write"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
