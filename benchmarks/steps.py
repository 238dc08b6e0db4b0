"""How long one step of a model takes: decodes and prefill chunks of any shape, without scheduler and server.

    python benchmarks/steps.py                                  # the default model
    GOMP_SPINCOUNT=300000 python benchmarks/steps.py --shapes 1x200x1 16x300x1

    python benchmarks/steps.py --dtypes float32 bfloat16        # each shape with both in turn

A shape is SEQUENCES x CONTEXT x NEW: that many sequences of that length, of which the last NEW tokens are computed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from octavo import LLM, SamplingParams
from octavo.engine.messages import AddRequest, packed


def milliseconds(llm: LLM, sequences: int, context: int, new: int, repeats: int) -> float:
    """Median time of a step; the first step of each sequence computes what lies before the NEW tokens."""
    steps: list[float] = []
    decodes = repeats if new == 1 else 1
    for repeat in range(1 if new == 1 else repeats):
        for key in range(sequences):
            # Another one for each shape, or it would find what an earlier shape has left in the prefix cache.
            first = (sequences * 31 + context) * 31 + new + key * 7919 + repeat * 104_729
            prompt = [(first + i * 31) % 40_000 for i in range(context)]
            if new > 1 and context > new:
                # What lies before is put into the prefix cache by a request of its own.
                llm.generate([prompt[: context - new + 1]], SamplingParams(temperature=0, max_tokens=1))
            sampling = SamplingParams(temperature=0, max_tokens=decodes + 1, ignore_eos=True)
            llm.core.add(AddRequest(str(key), packed(prompt), sampling, key=1_000_000 + key))
        times = []
        while llm.core.has_work:
            start = time.perf_counter()
            llm.core.step()
            times.append(time.perf_counter() - start)
        steps += times[-decodes:] if new == 1 else times[:1]
    return statistics.median(steps) * 1e3


def main() -> int:
    """Prints one line for each shape; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as for `octavo serve`")
    parser.add_argument("--shapes", nargs="+", default=["1x200x1", "16x300x1", "1x512x512", "1x940x40"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--dtypes", nargs="+", default=["auto"], help="as for `octavo serve --dtype`; or int8: weights in it"
    )
    options = parser.parse_args()
    chosen = {"model": options.model} if options.model else {}
    models = {}
    for dtype in options.dtypes:
        kind = {"quantization": "int8"} if dtype == "int8" else {"dtype": dtype}
        models[dtype] = LLM(**chosen, **kind, num_blocks=4096, max_num_batched_tokens=16_384)
    for shape in options.shapes:
        sequences, context, new = map(int, shape.split("x"))
        for dtype, llm in models.items():
            taken = milliseconds(llm, sequences, context, new, options.repeats)
            speed = sequences * new / taken * 1e3
            print(f"{shape:>16}  {dtype:>10}  {taken:8.1f} ms  {speed:10,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
