"""The one decoder that runs every supported family; `ModelShape` says which parts it has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.models.layer_stack import LayerStack
from octavo.models.layers import Head, RmsNorm, warm_up_fused
from octavo.models.shape import ModelShape


class Decoder:
    """A loaded model; `octavo.models.loader.load_model` builds it.

    The residual stream is float32 whatever the weights are. It is a small tensor, a few channels of it grow to many
    thousands, and sixty additions rounded to bfloat16 cost more accuracy than everything else in a step: kept
    wide, the outputs' divergence from a float32 run falls to about a third (``tests/models/test_accuracy.py``).

    Args:
        shape: What the model looks like.
        embedding: [vocab, hidden], on the device and of the type that the model runs in.
        layers: All of them.
        norm: After the last layer.
        head: hidden → vocab.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        embedding: Tensor,
        layers: LayerStack,
        norm: RmsNorm,
        head: Head,
    ) -> None:
        self.shape = shape
        self.dtype = embedding.dtype
        self.device = embedding.device
        self._embedding = embedding
        # As transformers does, the factor is rounded to the model's type before it is used.
        self._embedding_scale = torch.tensor(shape.embedding_scale, dtype=self.dtype).item()
        self._layers = layers
        self._norm = norm
        self._head = head
        self._ending = head.after(norm)

    @property
    def weight_bytes(self) -> int:
        """Memory taken by the weights, in bytes; norms and rotary tables are left out."""
        # A tied output layer shares the embedding's tensor, unless it had to be packed.
        distinct = {id(tensor): tensor for tensor in (*self._layers.tensors, *self._head.tensors, self._embedding)}
        return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())

    @property
    def is_batch_invariant(self) -> bool:
        """As for `octavo.models.layer_stack.LayerStack`; the embedding and the output layer are."""
        return self._layers.is_batch_invariant

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], batches: Sequence[PagedBatch]
    ) -> Tensor:
        """Runs one step: writes the tokens' K and V to the cache and attends through it.

        Args:
            input_ids: int64 [T], the tokens of all sequences one after the other.
            positions: int64 [T], each token's position in its sequence.
            kv_caches: Per layer, [num_blocks, 2, num_kv_heads, block_size, row width]; see `octavo.kernels.kv_rows`.
            batches: Per layer, whose tokens they are, and where their context lies.

        Returns:
            [T, hidden] of the weights' type, after the final norm. Nothing here waits for the device.
        """
        return self._norm(self._residual_stream(input_ids, positions, kv_caches, batches))

    @torch.inference_mode()
    def step_logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[Tensor],
        batches: Sequence[PagedBatch],
        tokens: Tensor,
    ) -> Tensor:
        """`forward` and `logits`, where nothing else is asked of the hidden states.

        Args:
            tokens: int64 [N], those of the step whose logits are wanted. The others as for `forward`.

        Returns:
            As `logits`.
        """
        return self._capped(self._ending(self._residual_stream(input_ids, positions, kv_caches, batches), tokens))

    def _residual_stream(
        self, input_ids: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], batches: Sequence[PagedBatch]
    ) -> Tensor:
        """float32 [T, hidden], after the last layer."""
        x = F.embedding(input_ids, self._embedding).float()
        if self._embedding_scale != 1.0:
            x.mul_(self._embedding_scale)
        self._layers.forward(x, positions, kv_caches, batches)
        return x

    def warm_up(self, block_size: int, kv_dtype: torch.dtype) -> None:
        """Compiles what the first steps would otherwise wait for."""
        self._layers.warm_up(block_size, kv_dtype)
        if self.device.type == "cpu":
            warm_up_fused(self.shape.hidden_size, self.dtype)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary.

        Args:
            hidden: [N, hidden], rows of what `forward` returned.

        Returns:
            float32 [N, vocab].
        """
        return self._capped(self._head(hidden))

    def _capped(self, logits: Tensor) -> Tensor:
        if cap := self.shape.logit_softcap:
            logits.div_(cap).tanh_().mul_(cap)
        return logits
