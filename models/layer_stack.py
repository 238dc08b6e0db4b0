"""A decoder's layers, computed operation by operation: on any device, in any type.

On a CPU, `octavo.models.compiled` does the same in one call where it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.attention import Backend, PagedBatch, warm_up
from octavo.models.layers import Linear, RmsNorm, Rotary, gated, rotate
from octavo.models.shape import ModelShape

Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines of a step's positions, each [T, 1, head_dim]."""


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One decoder layer's weights as they are in the checkpoint, in the type that the model runs in.

    Attributes:
        qkv: Q, K and V projections in one: [q_size + 2 · kv_size, hidden].
        output: The attention's output projection.
        gate_up: Gate and up projections in one: [2 · intermediate, hidden].
        down: The MLP's output projection.
        qkv_bias, output_bias, gate_up_bias, down_bias: Their biases, or None.
        attention_norm: Before attention.
        mlp_norm: Before the MLP.
        head_norm: On query and key heads, [query and key heads, head_dim], or None.
        attention_post_norm: On the attention's output, or None.
        mlp_post_norm: On the MLP's output, or None.
    """

    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None
    output_bias: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    attention_norm: Tensor
    mlp_norm: Tensor
    head_norm: Tensor | None
    attention_post_norm: Tensor | None
    mlp_post_norm: Tensor | None


class LayerStack(Protocol):
    """All layers of a decoder, between the embedding and the last norm."""

    def forward(self, x: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], batches: Sequence[PagedBatch]) -> None:
        """Runs a step: changes the residual stream and writes K and V.

        Args:
            x: float32 [T, hidden], contiguous; changed in place.
            positions, kv_caches, batches: As for `octavo.models.decoder.Decoder.forward`.
        """

    def warm_up(self, block_size: int, kv_dtype: torch.dtype) -> None:
        """Compiles what the first steps would otherwise wait for."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights that it keeps in memory, without norms."""

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a token's result is the same, to the last bit, whatever is computed with it and however its sequence
        was cut into steps."""


class TorchLayers:
    """Operation by operation.

    Args:
        shape: What the model looks like.
        layers: Weights, first layer to last; each is packed before the next one is asked for.
        dtype: Of the weights.
        ropes: Rotary tables of layers without a window and of layers with one; the same object if they agree.
        kernels: Paged attention.
    """

    def __init__(
        self,
        shape: ModelShape,
        layers: Iterable[LayerTensors],
        dtype: torch.dtype,
        ropes: tuple[Rotary, Rotary],
        kernels: Backend,
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._ropes = ropes
        self._kernels = kernels
        self._layers = tuple(_Layer.of(tensors, shape, dtype) for tensors in layers)

    def forward(self, x: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], batches: Sequence[PagedBatch]) -> None:
        full = self._ropes[0].rows(positions, self._dtype)
        local = full if self._ropes[1] is self._ropes[0] else self._ropes[1].rows(positions, self._dtype)
        layers = zip(self._layers, self._shape.windows, kv_caches, batches, strict=True)
        for layer, window, kv_cache, batch in layers:
            self._attend(x, layer, kv_cache, batch, window=window, rotation=local if window else full)
            self._transform(x, layer)

    def warm_up(self, block_size: int, kv_dtype: torch.dtype) -> None:
        shape = self._shape
        for window in set(shape.windows):
            warm_up(
                self._kernels,
                num_q_heads=shape.num_q_heads,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                block_size=block_size,
                dtype=self._dtype,
                kv_dtype=kv_dtype,
                device=self._layers[0].qkv.tensors[0].device,
                window=window,
                softcap=shape.attention_softcap,
            )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        linears = (part for layer in self._layers for part in (layer.qkv, layer.output, layer.gate_up, layer.down))
        return tuple(tensor for linear in linears for tensor in linear.tensors)

    @property
    def is_batch_invariant(self) -> bool:
        return False

    def _attend(
        self, x: Tensor, layer: _Layer, kv_cache: Tensor, batch: PagedBatch, *, window: int, rotation: Rotation
    ) -> None:
        """Adds the attention's output to the residual stream."""
        shape, num_tokens = self._shape, x.shape[0]
        # Query and key heads lie side by side and are normalised and rotated as one tensor.
        rotated = shape.num_q_heads + shape.num_kv_heads
        heads = layer.qkv(layer.attention_norm(x)).view(num_tokens, rotated + shape.num_kv_heads, shape.head_dim)
        qk, v = heads[:, :rotated], heads[:, rotated:]
        if layer.head_norm is not None:
            qk = layer.head_norm(qk)
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
        out = layer.output(attended.reshape(num_tokens, shape.q_size))
        x.add_(out if layer.attention_post_norm is None else layer.attention_post_norm(out))

    def _transform(self, x: Tensor, layer: _Layer) -> None:
        """Adds the MLP's output to the residual stream."""
        out = layer.down(gated(self._shape.activation, layer.gate_up(layer.mlp_norm(x))))
        x.add_(out if layer.mlp_post_norm is None else layer.mlp_post_norm(out))


@dataclass(frozen=True, slots=True)
class _Layer:
    """`LayerTensors`, ready to be called."""

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear
    attention_norm: RmsNorm
    mlp_norm: RmsNorm
    head_norm: RmsNorm | None
    attention_post_norm: RmsNorm | None
    mlp_post_norm: RmsNorm | None

    @classmethod
    def of(cls, tensors: LayerTensors, shape: ModelShape, dtype: torch.dtype) -> _Layer:
        def norm(weight: Tensor, dtype: torch.dtype = dtype) -> RmsNorm:
            return RmsNorm(weight, shape.norm_eps, adds_one=shape.norm_adds_one, dtype=dtype)

        def post_norm(weight: Tensor | None) -> RmsNorm | None:
            # Its result goes to the residual stream, which is float32.
            return None if weight is None else norm(weight, torch.float32)

        return cls(
            qkv=Linear(tensors.qkv, tensors.qkv_bias),
            output=Linear(tensors.output, tensors.output_bias),
            gate_up=Linear(tensors.gate_up, tensors.gate_up_bias),
            down=Linear(tensors.down, tensors.down_bias),
            attention_norm=norm(tensors.attention_norm),
            mlp_norm=norm(tensors.mlp_norm),
            head_norm=None if tensors.head_norm is None else norm(tensors.head_norm),
            attention_post_norm=post_norm(tensors.attention_post_norm),
            mlp_post_norm=post_norm(tensors.mlp_post_norm),
        )
