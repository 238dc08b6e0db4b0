"""Weights on disk, or made up, to a `Decoder` that can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels.attention import Backend, select_backend
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import Decoder, LayerWeights
from octavo.models.layers import Head, Linear, RmsNorm, Rotary
from octavo.models.shape import ModelShape

LOAD_FORMATS = ("auto", "dummy")

Source = Callable[[str], Tensor]
"""Gives one tensor of the checkpoint by its name, of any type and on any device."""


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    max_model_len: int | None = None,
    load_format: str = "auto",
    seed: int = 0,
    attention_backend: str = "auto",
    trust_remote_code: bool = False,
) -> Decoder:
    """Loads a model folder.

    Args:
        folder: As `octavo.models.resolve.resolve` returns it.
        dtype: As for `ModelShape.served_dtype`.
        device: Where the model runs.
        max_model_len: The longest sequence that will be run; default: what the model was made for.
        load_format: ``auto`` reads safetensors; ``dummy`` makes random weights from the config alone.
        seed: For ``dummy``.
        attention_backend: As for `octavo.kernels.attention.select_backend`.
        trust_remote_code: As for `ModelShape.read`.

    Raises:
        ModelNotFoundError: There is no ``config.json``.
        UnsupportedModelError: The decoder does not cover the model.
        WeightsError: The weight files are not what they should be.
        ConfigError: An option is not one of the above.
    """
    device = torch.device(device)
    kernels = select_backend(device, attention_backend)
    shape = ModelShape.read(folder, trust_remote_code=trust_remote_code)
    target: torch.dtype = getattr(torch, shape.served_dtype(dtype))
    if load_format not in LOAD_FORMATS:
        raise ConfigError(f"load format must be {' or '.join(LOAD_FORMATS)}, not {load_format!r}")
    dummy = load_format == "dummy"
    source = random_weights(shape, seed, target, device) if dummy else Checkpoint(folder, shape).read
    return _Builder(shape, source, target, device).build(kernels, max_model_len or shape.max_position_embeddings)


def random_weights(shape: ModelShape, seed: int, dtype: torch.dtype, device: torch.device) -> Source:
    """Seeded weights that keep activations finite: norms multiply by one, everything else is small and normal."""
    generator = torch.Generator(device).manual_seed(seed)
    shapes = shape.parameter_shapes()
    unit = 0.0 if shape.norm_adds_one else 1.0

    def make(name: str) -> Tensor:
        if "norm" in name:
            return torch.full(shapes[name], unit, dtype=dtype, device=device)
        return torch.randn(shapes[name], generator=generator, dtype=dtype, device=device).mul_(0.02)

    return make


class _Builder:
    """Copies tensors to their place one at a time, so that no more than one layer exists twice."""

    def __init__(self, shape: ModelShape, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = shape
        self._shapes = shape.parameter_shapes()
        self._source = source
        self._dtype = dtype
        self._device = device

    def build(self, kernels: Backend, max_model_len: int) -> Decoder:
        shape = self._shape
        embedding = self._stack("model.embed_tokens.weight")
        full = Rotary(shape.rope, shape.head_dim, max_model_len, self._device)
        local = full
        if shape.local_rope is not None:
            local = Rotary(shape.local_rope, shape.head_dim, max_model_len, self._device)
        tied = shape.tied_embeddings
        head = Head(Linear(embedding if tied else self._stack("lm_head.weight")), embedding if tied else None)
        return Decoder(
            shape,
            embedding=embedding,
            layers=[self._layer(f"model.layers.{layer}.") for layer in range(shape.num_layers)],
            norm=self._norm("model.norm"),
            head=head,
            ropes=(full, local),
            kernels=kernels,
        )

    def _layer(self, prefix: str) -> LayerWeights:
        attention, mlp, sandwich = prefix + "self_attn.", prefix + "mlp.", self._shape.post_norms
        # With norms on both sides, what other families call the post-attention norm is the one before the MLP.
        mlp_norm = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        return LayerWeights(
            qkv=self._linear(attention, ("q_proj", "k_proj", "v_proj"), bias=self._shape.qkv_bias),
            output=self._linear(attention, ("o_proj",), bias=self._shape.output_bias),
            gate_up=self._linear(mlp, ("gate_proj", "up_proj"), bias=self._shape.mlp_bias),
            down=self._linear(mlp, ("down_proj",), bias=self._shape.mlp_bias),
            attention_norm=self._norm(prefix + "input_layernorm"),
            mlp_norm=self._norm(prefix + mlp_norm),
            head_norm=self._head_norm(attention) if self._shape.qk_norm else None,
            attention_post_norm=self._post_norm(prefix + "post_attention_layernorm") if sandwich else None,
            mlp_post_norm=self._post_norm(prefix + "post_feedforward_layernorm") if sandwich else None,
        )

    def _linear(self, prefix: str, parts: tuple[str, ...], *, bias: bool) -> Linear:
        weight = self._stack(*(f"{prefix}{part}.weight" for part in parts))
        return Linear(weight, self._stack(*(f"{prefix}{part}.bias" for part in parts)) if bias else None)

    def _norm(self, name: str) -> RmsNorm:
        return self._rms_norm(self._stack(f"{name}.weight"), self._dtype)

    def _post_norm(self, name: str) -> RmsNorm:
        """A norm whose result goes to the residual stream, which is float32."""
        return self._rms_norm(self._stack(f"{name}.weight"), torch.float32)

    def _head_norm(self, prefix: str) -> RmsNorm:
        shape = self._shape
        q, k = self._stack(f"{prefix}q_norm.weight"), self._stack(f"{prefix}k_norm.weight")
        weights = torch.cat((q.expand(shape.num_q_heads, -1), k.expand(shape.num_kv_heads, -1)))
        return self._rms_norm(weights, self._dtype)

    def _rms_norm(self, weight: Tensor, dtype: torch.dtype) -> RmsNorm:
        return RmsNorm(weight, self._shape.norm_eps, adds_one=self._shape.norm_adds_one, dtype=dtype)

    def _stack(self, *names: str) -> Tensor:
        """The named tensors on top of each other, each copied once from where it is to where it belongs."""
        sizes = [self._shapes[name] for name in names]
        rows = [size[0] for size in sizes]
        stacked = torch.empty((sum(rows), *sizes[0][1:]), dtype=self._dtype, device=self._device)
        for place, name in zip(torch.split(stacked, rows), names, strict=True):
            place.copy_(self._source(name))
        return stacked
