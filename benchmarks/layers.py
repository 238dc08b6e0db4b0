"""All layers of a model in one compiled call, beside the same operation by operation; one process, by turns.

    GOMP_SPINCOUNT=2000 python benchmarks/layers.py         # threads wait as they do in the engine's process
    GOMP_SPINCOUNT=2000 python benchmarks/layers.py --shapes 1x200x1 16x940x1s 1x2400x512 --turns 20
    GOMP_SPINCOUNT=2000 python benchmarks/layers.py --quantization int8        # beside the same call in bfloat16
    GOMP_SPINCOUNT=2000 python benchmarks/layers.py --kv-cache-dtype int8      # the same

A shape is SEQUENCES x CONTEXT x NEW: that many sequences of that length, of which the last NEW tokens are computed.
With an s at its end, all but the last 40 tokens of their context are the same blocks. "floor" is what the machine needs
to read the weights and K and V once, at the rate at which it read memory during the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from octavo.config import DEFAULT_MODEL
from octavo.kernels.attention import PagedBatch
from octavo.kernels.kv_rows import quantize
from octavo.models import compiled
from octavo.models.decoder import Decoder
from octavo.models.loader import load_model
from octavo.models.resolve import resolve

BLOCK_SIZE = 16
OWN_TOKENS = 40
READ_BYTES = 256 * 2**20
SHAPES = ["1x200x1", "4x300x1", "16x300x1", "16x940x1", "16x940x1s", "4x2400x1", "64x300x1"]
SHAPES += ["1x64x64", "1x200x200", "1x512x512", "1x940x40", "1x2412x512"]


@dataclass(frozen=True)
class Step:
    """What one forward gets."""

    ids: Tensor
    positions: Tensor
    batch: PagedBatch
    kv_caches: list[Tensor]

    @property
    def kv_bytes(self) -> int:
        """Of all blocks in use, each counted once."""
        return len(self.batch.block_tables.unique()) * sum(layer[0].nbytes for layer in self.kv_caches)

    def in_int8(self) -> Step:
        """The same with K and V in int8."""
        return replace(self, kv_caches=[quantize(layer) for layer in self.kv_caches])


def make_step(decoder: Decoder, sequences: int, context: int, new: int, *, shared: bool) -> Step:
    """A step over shuffled blocks of random K and V."""
    shape, columns = decoder.shape, -(-context // BLOCK_SIZE)
    generator = torch.Generator().manual_seed(0)
    tables = (torch.randperm(sequences * columns, generator=generator) + 1).view(sequences, columns).int()
    if shared:
        same = (context - OWN_TOKENS) // BLOCK_SIZE
        tables[:, :same] = tables[0, :same]
    size = (sequences * columns + 1, 2, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    kv_caches = [torch.randn(size, generator=generator).mul_(0.3).to(decoder.dtype) for _ in range(shape.num_layers)]
    at = torch.arange(context - new, context)
    batch = PagedBatch(
        block_tables=tables,
        seq_lens=torch.full((sequences,), context, dtype=torch.int32),
        cu_query_lens=torch.arange(0, sequences * new + 1, new, dtype=torch.int32),
        slot_mapping=(tables[:, at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE).flatten(),
        num_decodes=sequences if new == 1 else 0,
        max_query_len=new,
        max_seq_len=context,
    )
    ids = torch.randint(shape.vocab_size, (sequences * new,), generator=generator)
    return Step(ids, at.repeat(sequences), batch, kv_caches)


def by_turns(works: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as for `octavo serve`")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--quantization", choices=["int8"], help="measure such weights beside bfloat16")
    parser.add_argument("--kv-cache-dtype", choices=["int8"], help="measure K and V so beside bfloat16")
    options = parser.parse_args()
    if options.quantization and options.kv_cache_dtype:
        parser.error("--quantization and --kv-cache-dtype are measured one at a time")
    folder = resolve(options.model, progress=print).path
    if options.quantization:
        ours, theirs = load_model(folder, dtype="bfloat16", quantization="int8"), load_model(folder, dtype="bfloat16")
    elif options.kv_cache_dtype:
        ours = theirs = load_model(folder, dtype="bfloat16")
    else:
        ours = load_model(folder, dtype="bfloat16")
        with mock.patch.object(compiled, "fits", return_value=False):
            theirs = load_model(folder, dtype="bfloat16")
    read = torch.ones(READ_BYTES // 8, dtype=torch.int64)  # of zeros there would be one page
    in_8_bits = "weights in int8" if options.quantization else "KV in int8" if options.kv_cache_dtype else ""
    table = Table(
        "sequences x context x new",
        f"{in_8_bits or 'one call'}, ms",
        f"{'bfloat16' if in_8_bits else 'by operation'}, ms",
        "ratio",
        "floor, ms",
        title="one step",
    )
    for shape in options.shapes:
        sequences, context, new = map(int, shape.rstrip("s").split("x"))
        their_step = make_step(ours, sequences, context, new, shared=shape.endswith("s"))
        step = their_step.in_int8() if options.kv_cache_dtype else their_step

        def run(decoder: Decoder, step: Step, sequences: int = sequences) -> Tensor:
            batches = [step.batch] * decoder.shape.num_layers
            hidden = decoder.forward(step.ids, step.positions, step.kv_caches, batches)
            return decoder.logits(hidden[:sequences])

        works = {"ours": partial(run, ours, step), "theirs": partial(run, theirs, their_step), "read": read.sum}
        taken = by_turns(works, options.turns)
        # A row of the embedding for each token is all that is read of it.
        read_bytes = ours.weight_bytes - 2 * ours.shape.vocab_size * ours.shape.hidden_size + step.kv_bytes
        floor = read_bytes / READ_BYTES * taken["read"] if new == 1 else None
        table.add_row(
            shape,
            f"{taken['ours'] * 1e3:.1f}",
            f"{taken['theirs'] * 1e3:.1f}",
            f"{taken['ours'] / taken['theirs']:.2f}",
            "" if floor is None else f"{floor * 1e3:.1f}",
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
