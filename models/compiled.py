"""A decoder's layers in one compiled call, where machine and model allow it: see `octavo.kernels.cpu.stack`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.attention import PagedBatch
from octavo.kernels.cpu import int8, packing, stack
from octavo.kernels.cpu.linear import interleave, workers_for
from octavo.models.layer_stack import LayerTensors
from octavo.models.layers import Rotary
from octavo.models.shape import ModelShape


def fits(shape: ModelShape, dtype: torch.dtype, *, quantized: bool = False) -> bool:
    """Whether `CompiledLayers` can run a model of this shape and type here."""
    widths = (shape.hidden_size, shape.q_size, shape.intermediate_size)
    return packing.is_known(dtype) and shape.fits_tiles and (not quantized or max(widths) <= int8.MOST_INPUTS)


class CompiledLayers:
    """All layers at once, on a CPU.

    Args:
        shape: What the model looks like. dtype: of its weights. See `fits`.
        layers: Weights, first layer to last; each is packed before the next one is asked for.
        ropes: Rotary tables of layers without a window and of layers with one.
        quantized: Keep the projections' weights in int8.
    """

    def __init__(
        self,
        shape: ModelShape,
        layers: Iterable[LayerTensors],
        dtype: torch.dtype,
        ropes: tuple[Rotary, Rotary],
        *,
        quantized: bool = False,
    ) -> None:
        self._shape = shape
        self._quantized = quantized
        self._weights: list[Tensor] = []
        self._others: list[Tensor] = []  # norms, biases and tables, of which the kernel knows the addresses
        self._addresses = np.zeros((shape.num_layers, stack.NUM_FIELDS), dtype=np.int64)
        for tensors, window, row in zip(layers, shape.windows, self._addresses, strict=True):
            self._place(tensors, row)
            row[stack.WINDOW] = window
            row[stack.ROTARY] = self._keep(ropes[1 if window else 0].table)
        self._num_weights = sum(weight.numel() for weight in self._weights)
        self._stack = stack.Stack(
            self._addresses,
            dtype,
            num_q_heads=shape.num_q_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            hidden=shape.hidden_size,
            intermediate=shape.intermediate_size,
            activation=shape.activation,
            scale=shape.attention_scale,
            softcap=shape.attention_softcap,
            eps=shape.norm_eps,
        )

    def forward(self, x: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], batches: Sequence[PagedBatch]) -> None:
        # If all layers have a window, none shares more than any other.
        full = self._shape.windows.index(0) if 0 in self._shape.windows else 0
        shape, batch = self._shape, batches[full]
        # Groups of layers have block tables of their own; lengths are the same for all.
        tables = {id(of_layer): of_layer.block_tables.contiguous() for of_layer in batches}
        places = np.array(
            [
                (kv_cache.data_ptr(), tables[id(of_layer)].data_ptr(), of_layer.slot_mapping.data_ptr())
                for kv_cache, of_layer in zip(kv_caches, batches, strict=True)
            ],
            dtype=np.int64,
        )
        self._stack.run(
            x.numpy(), places, kv_caches[0].shape, kv_caches[0].dtype is torch.int8, batch.block_tables.numpy(),
            positions.numpy(), batch.seq_lens.numpy(), batch.cu_query_lens.numpy(), batch.num_decodes,
            workers_for(self._num_weights // shape.num_layers),
        )  # fmt: skip

    def warm_up(self, block_size: int, kv_dtype: torch.dtype) -> None:
        self._stack.compile(int8_kv=kv_dtype is torch.int8)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self._weights)

    @property
    def is_batch_invariant(self) -> bool:
        return True

    def _place(self, tensors: LayerTensors, row: np.ndarray) -> None:
        """Packs a layer's weights and notes where they are."""
        gate_up_bias = None if tensors.gate_up_bias is None else interleave(tensors.gate_up_bias)
        for field, weight, bias in (
            (stack.QKV, tensors.qkv, tensors.qkv_bias),
            (stack.OUTPUT, tensors.output, tensors.output_bias),
            (stack.GATE_UP, interleave(tensors.gate_up), gate_up_bias),
            (stack.DOWN, tensors.down, tensors.down_bias),
        ):
            if self._quantized:
                numbers, scales = int8.quantize(weight)
                packed, row[field + stack.SCALES] = int8.pack(numbers), self._keep(scales)
            else:
                packed = packing.pack(weight)
            self._weights.append(packed)
            row[field] = packed.data_ptr()
            row[field + stack.BIAS] = 0 if bias is None else self._keep(bias.float())
        for field, norm in (
            (stack.ATTENTION_NORM, tensors.attention_norm),
            (stack.MLP_NORM, tensors.mlp_norm),
            (stack.HEAD_NORM, tensors.head_norm),
            (stack.ATTENTION_POST_NORM, tensors.attention_post_norm),
            (stack.MLP_POST_NORM, tensors.mlp_post_norm),
        ):
            if norm is not None:
                row[field] = self._keep(norm.float() + 1.0 if self._shape.norm_adds_one else norm.float())

    def _keep(self, tensor: Tensor) -> int:
        """Keeps a tensor alive; returns its address."""
        tensor = tensor.contiguous()
        self._others.append(tensor)
        return tensor.data_ptr()
