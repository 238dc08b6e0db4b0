"""Executes plans: copies, forward, sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from octavo.block_manager.tiers import Transfer, TransferOutcome, TransferTiming
from octavo.engine.batch import InputBuffers
from octavo.engine.grammars import Grammars
from octavo.engine.kv_cache import KVCache
from octavo.engine.pooling import Pooler
from octavo.engine.sampler import Sampler
from octavo.kernels.attention import PagedBatch
from octavo.models.decoder import Decoder
from octavo.scheduler.plan import Sampled, Scores, StepPlan
from octavo.scheduler.rows import Rows

# Positions of a prompt whose logits are worked out at once, where log-probabilities of prompts are asked for.
_SCORED_AT_ONCE = 32


class ModelRunner:
    """The model, its KV tensors and its input buffers.

    Args:
        decoder: The model. kv_cache: its KV tensors. inputs: fills a step's tensors. sampler: chooses tokens.
        rows: The scheduler's running sequences. grammars: what they have to follow.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        inputs: InputBuffers,
        sampler: Sampler,
        rows: Rows,
        grammars: Grammars,
    ) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._inputs = inputs
        self._sampler = sampler
        self._rows = rows
        self._grammars = grammars
        self._pooler = Pooler(rows)

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
        inputs = tokens, tokens, self._kv_cache.layers, batches
        self._decoder.logits(self._decoder.forward(*inputs))
        self._sampler.warm_up(self._decoder.step_logits(*inputs, torch.tensor([0, 3], device=device)))

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
        masks = self._grammars.begin(plan.sample_rows)
        step = self._inputs.build(plan)
        batches = [step.paged[group] for group in self._kv_cache.group_of_layer]
        inputs = step.input_ids, step.positions, self._kv_cache.layers, batches
        if len(plan.sample_from) and not self._reads_hidden(plan):
            logits = self._decoder.step_logits(*inputs, step.last_tokens)
            return self._sampler.sample(logits, plan.sample_rows, _allowed(masks, logits))
        hidden = self._decoder.forward(*inputs)
        scores, embeddings = tuple(self._score_prompts(plan, hidden)), self._pooler.take(plan, hidden)
        if not len(plan.sample_from):
            # Nothing below waits for the GPU, and the next step overwrites the buffers that this one still reads.
            if hidden.is_cuda:
                torch.cuda.current_stream().synchronize()
            return Sampled(np.empty(0, dtype=np.int32), scores=scores)
        logits = self._decoder.logits(hidden[step.last_tokens])
        sampled = self._sampler.sample(logits, plan.sample_rows, _allowed(masks, logits))
        if scores or embeddings:
            return replace(sampled, scores=scores + sampled.scores, embeddings=embeddings)
        return sampled

    def _reads_hidden(self, plan: StepPlan) -> bool:
        """Whether more is wanted of the hidden states than the next tokens' logits."""
        return self._pooler.is_asked(plan) or bool((self._rows.num_prompt_logprobs[plan.rows] >= 0).any())

    def _score_prompts(self, plan: StepPlan, hidden: Tensor) -> Iterator[Scores]:
        """Log-probabilities of the prompt's tokens that follow those of this step, for requests that ask for them."""
        rows = self._rows
        for i in np.flatnonzero(rows.num_prompt_logprobs[plan.rows] >= 0).tolist():
            row, start = int(plan.rows[i]), int(plan.starts[i])
            end = min(start + int(plan.query_lens[i]), int(rows.prompt_len[row]) - 1)
            first = int(plan.query_lens[:i].sum()) - start  # of the step's tokens, the sequence's position 0
            for at in range(start, end, _SCORED_AT_ONCE):
                logits = self._decoder.logits(hidden[first + at : first + min(at + _SCORED_AT_ONCE, end)])
                yield self._sampler.score_prompt(logits, row, at + 1)


def _allowed(masks: Future[Tensor] | None, logits: Tensor) -> Tensor | None:
    """The tokens that grammars allow, once that is known."""
    return None if masks is None else masks.result().to(logits.device)
