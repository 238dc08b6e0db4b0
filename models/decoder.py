"""The one decoder that runs every supported family; `ModelShape` says which parts it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.attention import Backend, PagedBatch
from octavo.models.layers import Head, Linear, RmsNorm, Rotary, gated, rotate, warm_up_fused
from octavo.models.shape import ModelShape

Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines of a step's positions, each [T, 1, head_dim]."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer.

    Attributes:
        qkv: Q, K and V projections in one: [q_size + 2 · kv_size, hidden].
        output: The attention's output projection.
        gate_up: Gate and up projections in one: [2 · intermediate, hidden].
        down: The MLP's output projection.
        attention_norm: Before attention.
        mlp_norm: Before the MLP.
        head_norm: On query and key heads, or None.
        attention_post_norm: On the attention's output, or None.
        mlp_post_norm: On the MLP's output, or None.
    """

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear
    attention_norm: RmsNorm
    mlp_norm: RmsNorm
    head_norm: RmsNorm | None
    attention_post_norm: RmsNorm | None
    mlp_post_norm: RmsNorm | None


class Decoder:
    """A loaded model; `octavo.models.loader.load_model` builds it.

    The residual stream is float32 whatever the weights are. It is a small tensor, a few channels of it grow to many
    thousands, and sixty additions rounded to bfloat16 cost more accuracy than everything else in a step: kept
    wide, the outputs' divergence from a float32 run falls to about a third (``tests/models/test_accuracy.py``).

    Args:
        shape: What the model looks like.
        embedding: [vocab, hidden], on the device and of the type that the model runs in.
        layers: The layers, first to last.
        norm: After the last layer.
        head: hidden → vocab.
        ropes: Rotary tables of layers without a window and of layers with one; the same object if they agree.
        kernels: Paged attention.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        embedding: Tensor,
        layers: Sequence[LayerWeights],
        norm: RmsNorm,
        head: Head,
        ropes: tuple[Rotary, Rotary],
        kernels: Backend,
    ) -> None:
        self.shape = shape
        self.dtype = embedding.dtype
        self.device = embedding.device
        self._embedding = embedding
        # As transformers does, the factor is rounded to the model's type before it is used.
        self._embedding_scale = torch.tensor(shape.embedding_scale, dtype=self.dtype).item()
        self._layers = tuple(layers)
        self._norm = norm
        self._head = head
        self._ropes = ropes
        self._kernels = kernels

    @property
    def weight_bytes(self) -> int:
        """Memory taken by the weights, in bytes; norms and rotary tables are left out."""
        linears: list[Linear | Head] = [
            self._head,
            *(part for w in self._layers for part in (w.qkv, w.output, w.gate_up, w.down)),
        ]
        # A tied output layer shares the embedding's tensor, unless it had to be packed.
        distinct = {id(tensor): tensor for linear in linears for tensor in linear.tensors}
        distinct[id(self._embedding)] = self._embedding
        return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], batches: Sequence[PagedBatch]
    ) -> Tensor:
        """Runs one step: writes the tokens' K and V to the cache and attends through it.

        Args:
            input_ids: int64 [T], the tokens of all sequences one after the other.
            positions: int64 [T], each token's position in its sequence.
            kv_caches: Per layer, [num_blocks, 2, num_kv_heads, block_size, head_dim].
            batches: Per layer, whose tokens they are, and where their context lies.

        Returns:
            [T, hidden] of the weights' type, after the final norm. Nothing here waits for the device.
        """
        x = F.embedding(input_ids, self._embedding).float()
        if self._embedding_scale != 1.0:
            x.mul_(self._embedding_scale)
        full = self._ropes[0].rows(positions, self.dtype)
        local = full if self._ropes[1] is self._ropes[0] else self._ropes[1].rows(positions, self.dtype)
        layers = zip(self._layers, self.shape.windows, kv_caches, batches, strict=True)
        for weights, window, kv_cache, batch in layers:
            self._attend(x, weights, kv_cache, batch, window=window, rotation=local if window else full)
            self._transform(x, weights)
        return self._norm(x)

    def warm_up(self) -> None:
        """Compiles what the first steps would otherwise wait for, beside the attention kernels."""
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
        logits = self._head(hidden)
        if cap := self.shape.logit_softcap:
            logits.div_(cap).tanh_().mul_(cap)
        return logits

    def _attend(
        self, x: Tensor, weights: LayerWeights, kv_cache: Tensor, batch: PagedBatch, *, window: int, rotation: Rotation
    ) -> None:
        """Adds the attention's output to the residual stream ``x``, float32 [T, hidden]."""
        shape, num_tokens = self.shape, x.shape[0]
        # Query and key heads lie side by side and are normalised and rotated as one tensor.
        rotated = shape.num_q_heads + shape.num_kv_heads
        heads = weights.qkv(weights.attention_norm(x)).view(num_tokens, rotated + shape.num_kv_heads, shape.head_dim)
        qk, v = heads[:, :rotated], heads[:, rotated:]
        if weights.head_norm is not None:
            qk = weights.head_norm(qk)
        qk = rotate(qk, *rotation)
        self._kernels.write_kv(qk[:, shape.num_q_heads :], v, kv_cache, batch.slot_mapping)
        attended = self._kernels.attend(
            qk[:, : shape.num_q_heads],
            kv_cache,
            batch,
            scale=shape.attention_scale,
            window=window,
            softcap=shape.attention_softcap,
        )
        out = weights.output(attended.reshape(num_tokens, shape.q_size))
        x.add_(out if weights.attention_post_norm is None else weights.attention_post_norm(out))

    def _transform(self, x: Tensor, weights: LayerWeights) -> None:
        """Adds the MLP's output to the residual stream ``x``, float32 [T, hidden]."""
        out = weights.down(gated(self.shape.activation, weights.gate_up(weights.mlp_norm(x))))
        x.add_(out if weights.mlp_post_norm is None else weights.mlp_post_norm(out))
