"""What scheduling costs in vLLM: its V1 scheduler and KV cache manager on the work of `scheduler_work.py`.

    DIR/vllm/bin/python benchmarks/scheduler_vllm.py --running 64

Prints one JSON document; `scheduler.py` runs this beside Octavo. No model is loaded and nothing is fetched. Where
vLLM has a choice it is given the cheaper one: no statistics, and the scheduler that does not run ahead of the GPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from scheduler_work import BLOCK_SIZE, MAX_MODEL_LEN, MAX_OUTPUT, VOCAB, Work, random_tokens, run_peer

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
    "max_position_embeddings": MAX_MODEL_LEN,
}


class VllmScheduler:
    """vLLM's scheduler as the work sees it."""

    def __init__(self, work: Work) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.request import Request, RequestStatus

        self.scheduler = make_scheduler(work)
        self._request, self._output, self._aborted = Request, ModelRunnerOutput, RequestStatus.FINISHED_ABORTED
        self.hash = self.scheduler.cache_config.prefix_caching_hash_algo
        hash_function = get_hash_fn_by_name(self.hash)
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(BLOCK_SIZE, hash_function)
        self._sampling = SamplingParams(temperature=0.0, max_tokens=MAX_OUTPUT, ignore_eos=True)
        # Made once, so that the collector does not see a list for each token of each step.
        self._tokens = [[token] for token in random_tokens(work)]

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    def received(self, prompt: list[int]) -> list[int]:
        return prompt

    def add(self, key: int, prompt: list[int]) -> None:
        # Hashes the prompt's blocks.
        request = self._request(str(key), prompt, self._sampling, None, block_hasher=self._hasher)
        self.scheduler.add_request(request)

    def abort(self, key: int) -> None:
        self.scheduler.finish_requests(str(key), self._aborted)

    def schedule(self) -> Any:
        return self.scheduler.schedule()

    def sample(self, plan: Any) -> Any:
        names = list(plan.num_scheduled_tokens)
        indices = {name: index for index, name in enumerate(names)}
        return self._output(req_ids=names, req_id_to_index=indices, sampled_token_ids=self._tokens[: len(names)])

    def update(self, plan: Any, sampled: Any) -> Any:
        return self.scheduler.update_from_output(plan, sampled)


def make_scheduler(work: Work) -> Any:
    """A scheduler with room for one sequence more than run, and a pool with as many usable blocks as Octavo's."""
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        model = ModelConfig(
            model=folder, tokenizer=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=MAX_MODEL_LEN
        )
    config = VllmConfig(
        model_config=model,
        scheduler_config=SchedulerConfig(
            max_num_seqs=work.running + 1,
            max_num_batched_tokens=work.max_batched_tokens,
            max_model_len=MAX_MODEL_LEN,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=True),
        device_config=DeviceConfig("cpu"),
    )
    blocks = work.pool_blocks + 1  # vLLM's null block is one of the pool's
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float32)
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["0"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
        log_stats=False,
    )


def prepare() -> type[VllmScheduler]:
    """Imports vLLM, as it is in an engine that has started."""
    # vLLM reads some of them as it is imported.
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm.envs import enable_envs_cache

    enable_envs_cache()  # else every look at a setting reads the environment
    return VllmScheduler


def describe(subject: VllmScheduler) -> dict[str, Any]:
    """Which vLLM, and how it was set."""
    import vllm

    settings = {"scheduler": type(subject.scheduler).__name__, "hash": subject.hash, "log_stats": False}
    return {"name": "vLLM", "version": vllm.__version__, "settings": settings}


if __name__ == "__main__":
    # Or transformers would take `benchmarks/kernels.py` for the package "kernels", which it looks for.
    del sys.path[0]
    sys.exit(run_peer(prepare, describe))
