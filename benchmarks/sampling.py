"""What each way of choosing tokens adds to a decode step, by turns in one process.

    python benchmarks/sampling.py                       # the default model, 1 and 16 sequences
    python benchmarks/sampling.py --sequences 64 --turns 9 --json sampling.json

Each way's step is compared with the greedy step of the same turn; the median of the differences is given, per step and
per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from llguidance import LLMatcher

from octavo import LLM, SamplingParams
from octavo.engine.messages import AddRequest, packed

STEPS = 24
# A document that never ends, of strings, numbers and structure, so that all kinds of masks come up.
JSON = LLMatcher.grammar_from_json_schema(
    {
        "type": "array",
        "minItems": 10_000,
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
    overrides={"whitespace_pattern": " ?"},
)

WAYS = {
    "greedy": SamplingParams(temperature=0, ignore_eos=True),
    "temperature": SamplingParams(seed=1, ignore_eos=True),
    "top-p 0.95": SamplingParams(seed=1, top_p=0.95, ignore_eos=True),
    "top-p 0.9, top-k 40": SamplingParams(seed=1, top_p=0.9, top_k=40, ignore_eos=True),
    "penalties": SamplingParams(
        temperature=0, ignore_eos=True, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.2
    ),
    "300 biases": SamplingParams(temperature=0, ignore_eos=True, logit_bias=tuple((i, 1.0) for i in range(300))),
    "20 logprobs": SamplingParams(temperature=0, ignore_eos=True, logprobs=20),
    "JSON grammar": SamplingParams(temperature=0, grammar=JSON),
}


def step_seconds(llm: LLM, sampling: SamplingParams, sequences: int, context: int) -> float:
    """The median decode step of so many sequences."""
    keys = range(1_000_000, 1_000_000 + sequences)
    for key in keys:
        prompt = [(key * 7919 + i * 31) % 40_000 for i in range(context)]
        llm.core.add(AddRequest(str(key), packed(prompt), sampling, key=key))
    times = []
    while len(times) < STEPS:
        start = time.perf_counter()
        result = llm.core.step()
        if len(result.tokens) == sequences and not result.started:
            times.append(time.perf_counter() - start)
    llm.core.abort(keys)
    return statistics.median(times)


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as for `octavo serve`")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--context", type=int, default=200, help="tokens before the first output (default: 200)")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    llm = LLM(**({"model": options.model} if options.model else {}), num_blocks=4096, max_num_seqs=256)
    rows = []
    for sequences in options.sequences:
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(options.turns + 1):
            for way, sampling in WAYS.items():
                seconds = step_seconds(llm, sampling, sequences, options.context)
                if turn:  # the first one warms up
                    taken[way].append(seconds)
        for way, times in taken.items():
            added = statistics.median(t - plain for t, plain in zip(times, taken["greedy"], strict=True))
            step_ms = statistics.median(times) * 1e3
            rows.append({"sequences": sequences, "way": way, "step_ms": step_ms, "added_us": added * 1e6})
    print(f"{'sequences':>9}  {'way':20}{'step ms':>10}{'added µs':>10}{'per token':>10}")
    for row in rows:
        per_token = row["added_us"] / row["sequences"]
        print(f"{row['sequences']:9}  {row['way']:20}{row['step_ms']:10.2f}{row['added_us']:10.0f}{per_token:10.1f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
