"""The step loop on a tiny random model: equal outputs however it is cut, and one bad request harms nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.config import EngineConfig
from octavo.engine import runner
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest, packed
from octavo.errors import ConfigError
from octavo.kernels.cpu.backend import CpuBackend
from octavo.scheduler.plan import StepPlan
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.streams import split_stream

Load = Callable[..., EngineCore]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a tiny Llama; its weights are made up."""
    import json

    path = tmp_path_factory.mktemp("tiny")
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
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    def load(**options: Any) -> EngineCore:
        config = EngineConfig.of(load_format="dummy", dtype="float32", **{"num_blocks": 64, "seed": 3, **options})
        return EngineCore.load(config, folder, name="tiny")

    return load


def run(core: EngineCore, prompts: list[list[int]], **sampling: Any) -> dict[tuple[int, int], list[int]]:
    """All prompts at once, to the end; (key, index) → tokens."""
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **sampling})
    for key, prompt in enumerate(prompts):
        core.add(AddRequest(str(key), packed(prompt), params, key=key))
    outputs: dict[tuple[int, int], list[int]] = {}
    while core.has_work:
        result = core.step()
        for stream, token in zip(result.streams.tolist(), result.tokens.tolist(), strict=True):
            outputs.setdefault(split_stream(stream), []).append(token)
        assert core.check_integrity() == []
    return outputs


def prompts() -> list[list[int]]:
    chance = np.random.default_rng(0)
    shared = chance.integers(0, 120, 20).tolist()
    return [
        shared[: chance.integers(0, 20)] + chance.integers(0, 120, chance.integers(1, 30)).tolist() for _ in range(8)
    ]


# So few blocks that sequences have to give way to each other.
TIGHT = {"block_size": 4, "num_blocks": 26, "max_model_len": 64, "watermark_ratio": 0.0, "lookahead": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 1, "num_blocks": 600},
        {"block_size": 8, "max_num_batched_tokens": 7, "max_num_seqs": 7},
        {"block_size": 4, "prefix_caching": False},
        TIGHT,
        {**TIGHT, "prefix_caching": False},
        {**TIGHT, "swap_space": 2**20, "preemption": "swap"},
        {**TIGHT, "swap_space": 2**20, "preemption": "swap", "prefix_caching": False},
        {**TIGHT, "swap_disk": 2**20, "swap_dir": "/tmp", "preemption": "swap"},
        {**TIGHT, "swap_space": 2**20, "preemption": "recompute"},
        {"attention_backend": "reference"},
    ],
)
def test_outputs_do_not_depend_on_how_the_cache_is_cut(load: Load, options: dict[str, Any]) -> None:
    core = load(**options)
    assert run(core, prompts()) == run(load(), prompts())
    stats = core.stats()
    assert ("num_blocks" in options and options["num_blocks"] < 30) == (stats.num_preemptions > 0)
    if options.get("preemption") == "swap":
        assert stats.swapped_tokens > 0
        assert stats.recomputed_tokens == 0
    elif "swap_space" in options:
        assert stats.copies["device_to_host"] > 0, "nothing sank"
        assert stats.prefix_hits["host"] > 0


def test_with_kv_in_int8_they_do_not_either(load: Load) -> None:
    ample, tight = (load(kv_cache_dtype="int8", **options) for options in ({}, {**TIGHT, "swap_space": 2**20}))
    assert run(tight, prompts()) == run(ample, prompts())
    assert tight.stats().swapped_tokens > 0
    assert "KV block     4 tokens × 2 layers × 2 (K, V) × 2 heads × (16 × 1 B + a scale of 4 B) = 640 B" in (
        tight.info.report
    )


def test_kv_in_int8_is_refused_where_no_kernel_reads_it(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuBackend, "reads_int8", False)
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8: the cpu kernels cannot read it"):
        load(kv_cache_dtype="int8")
    for options in ({"attention_backend": "triton"}, {"device": "cuda"}):
        with pytest.raises(ConfigError, match="--kv-cache-dtype int8: there are kernels for it for CPUs only"):
            load(kv_cache_dtype="int8", **options)
    with pytest.raises(ConfigError, match="--kv-cache-dtype must be one of auto, int8, not 'fp8'"):
        load(kv_cache_dtype="fp8")


def test_seeded_samples_do_not_depend_on_the_batch_or_on_preemption(load: Load) -> None:
    sampling = {"temperature": 1.0, "seed": 5, "n": 3, "top_p": 0.95}
    together = run(load(), prompts(), **sampling)
    tight = load(**{**TIGHT, "num_blocks": 40})
    assert run(tight, prompts(), **sampling) == together
    assert tight.stats().num_preemptions > 0
    alone = {}
    core = load()
    for key, prompt in enumerate(prompts()):
        alone.update({(key, index): tokens for (_, index), tokens in run(core, [prompt], **sampling).items()})
    assert alone == together


class Poisoned:
    """A runner that fails whenever a certain request is in the step."""

    def __init__(self, core: EngineCore, key: int) -> None:
        self._execute = core.runner.execute
        self._rows = core.scheduler.rows
        self._key = key

    def execute(self, plan: StepPlan) -> np.ndarray:
        if any(split_stream(stream)[0] == self._key for stream in self._rows.stream[plan.rows].tolist()):
            raise RuntimeError("poisoned")
        return self._execute(plan)


def test_one_bad_request_fails_alone(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    good = prompts()
    expected = run(load(), good)
    core = load()
    core.runner = Poisoned(core, 99)  # type: ignore[assignment]
    core.add(AddRequest("bad", packed([1, 2, 3]), SamplingParams(max_tokens=5), key=99))
    outputs = run(core, good)
    assert outputs == expected
    assert core.stats().finished["error"] == 1
    assert core.stats().device.used == 0
    assert "step" in caplog.text


def test_ended_sequences_free_their_blocks_and_their_siblings_go_on(load: Load) -> None:
    core = load()
    core.add(AddRequest("r", packed([1, 2, 3]), SamplingParams(n=2, seed=1, max_tokens=20, ignore_eos=True), key=0))
    for _ in range(4):
        core.step()
    core.end_sequence(0, 1)
    core.end_sequence(0, 1)  # unknown by now
    finished = [end for _ in range(30) for end in core.step().finished]
    assert [(split_stream(end.stream), str(end.reason)) for end in finished] == [((0, 0), "length")]
    assert core.stats().finished == {"stop": 1, "length": 1, "abort": 0, "error": 0}
    assert core.stats().device.used == 0


def test_the_slots_that_hold_kv_are_counted(load: Load) -> None:
    core = load(block_size=8)
    core.add(AddRequest("r", packed(list(range(20))), SamplingParams(n=3, max_tokens=20, ignore_eos=True), key=0))
    core.step()
    stats = core.stats()
    assert (stats.device.used, stats.slots_filled, stats.blocks_shared) == (3, 20, 3)
    core.step()
    stats = core.stats()
    assert (stats.device.used, stats.slots_filled, stats.copies["copy_on_write"]) == (5, 16 + 3 * 5, 2)
    core.abort([0])
    assert core.stats().slots_filled == 0


def test_an_interrupted_step_is_not_taken_for_computed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    core, prompt = load(block_size=4), list(range(20))
    expected = run(load(block_size=4), [prompt])

    def interrupt(plan: object) -> None:
        raise KeyboardInterrupt

    core.add(AddRequest("", packed(prompt), SamplingParams(temperature=0, n=3, max_tokens=4), key=7))
    with monkeypatch.context() as patched:
        patched.setattr(core.runner, "execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            core.step()
    core.abort([7])
    assert core.check_integrity() == []
    assert run(core, [prompt]) == expected


def test_a_scored_prompt_never_has_all_its_logits_at_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_SCORED_AT_ONCE", 16)
    core = load()
    compute, asked = core.runner._decoder.logits, []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        asked.append(len(hidden))
        return compute(hidden)

    monkeypatch.setattr(core.runner._decoder, "logits", logits)
    run(core, [list(range(1, 100))], prompt_logprobs=1, max_tokens=1)
    assert sum(asked) == 99  # of 98 tokens that follow one, and the first of the output
    assert max(asked) == 16
