"""Executes plans: copies, forward, sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from octavo.block_manager.tiers import Transfer, TransferOutcome, TransferTiming
from octavo.engine.batch import InputBuffers
from octavo.engine.kv_cache import KVCache
from octavo.engine.sampler import Sampler
from octavo.kernels.attention import PagedBatch
from octavo.models.decoder import Decoder
from octavo.scheduler.plan import Sampled, StepPlan


class ModelRunner:
    """The model, its KV tensors and its input buffers.

    Args:
        decoder: The model. kv_cache: its KV tensors. inputs: fills a step's tensors. sampler: chooses tokens.
    """

    def __init__(self, decoder: Decoder, kv_cache: KVCache, inputs: InputBuffers, sampler: Sampler) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._inputs = inputs
        self._sampler = sampler

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compiles the kernels, and runs a decode and a small prefill that read the null block and write nothing."""
        shape, device = self._decoder.shape, self._decoder.device
        self._decoder.warm_up(self._kv_cache.block_size, self._kv_cache.layers[0].dtype)
        tokens = torch.zeros(4, dtype=torch.int64, device=device)
        lens = torch.tensor([1, 3], dtype=torch.int32, device=device)
        batch = PagedBatch(
            block_tables=torch.zeros((2, 3), dtype=torch.int32, device=device),
            seq_lens=lens,
            cu_query_lens=torch.tensor([0, 1, 4], dtype=torch.int32, device=device),
            slot_mapping=torch.full((4,), -1, dtype=torch.int64, device=device),
            num_decodes=1,
            max_query_len=3,
            max_seq_len=3,
        )
        batches = [batch] * shape.num_layers
        self._decoder.logits(self._decoder.forward(tokens, tokens, self._kv_cache.layers, batches))

    @torch.inference_mode()
    def measure_transfers(self) -> tuple[TransferTiming, ...]:
        """Times a few copies between the tiers in each direction, before any request owns a block.

        A direction that does not exist, or whose blocks are all lost, has no timing.
        """
        return self._kv_cache.measure_transfers()

    @torch.inference_mode()
    def transfer(self, transfers: Sequence[Transfer]) -> TransferOutcome:
        """Copies blocks between the tiers, as if one after another; see `TierTransfers.run`."""
        return self._kv_cache.transfer(transfers)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> Sampled:
        """Runs one step and returns what it sampled for each of ``plan.sample_rows``."""
        self._kv_cache.copy(plan.copies)
        step = self._inputs.build(plan)
        batches = [step.paged[group] for group in self._kv_cache.group_of_layer]
        hidden = self._decoder.forward(step.input_ids, step.positions, self._kv_cache.layers, batches)
        if not len(plan.sample_from):
            # Nothing below waits for the GPU, and the next step overwrites the buffers that this one still reads.
            if hidden.is_cuda:
                torch.cuda.current_stream().synchronize()
            return Sampled(np.empty(0, dtype=np.int32))
        logits = self._decoder.logits(hidden[step.last_tokens])
        return self._sampler.sample(logits, plan.sample_rows)
