"""Weights on disk, or made up, to a `Decoder` that can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels.attention import Backend, select_backend
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import Decoder
from octavo.models.layer_stack import LayerStack, LayerTensors, TorchLayers
from octavo.models.layers import Head, Linear, RmsNorm, Rotary
from octavo.models.shape import FITTING, ModelShape

LOAD_FORMATS = ("auto", "dummy")
QUANTIZATIONS = ("none", "int8")

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
    quantization: str = "none",
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
        quantization: ``int8`` keeps the weights of all products in int8, with a scale for each output.

    Raises:
        ModelNotFoundError: There is no ``config.json``.
        UnsupportedModelError: The decoder does not cover the model.
        WeightsError: The weight files are not what they should be.
        ConfigError: An option is not one of the above, or not possible here.
    """
    device = torch.device(device)
    kernels = select_backend(device, attention_backend)
    shape = ModelShape.read(folder, trust_remote_code=trust_remote_code)
    target: torch.dtype = getattr(torch, shape.served_dtype(dtype, device.type))
    if load_format not in LOAD_FORMATS:
        raise ConfigError(f"load format must be {' or '.join(LOAD_FORMATS)}, not {load_format!r}")
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization must be {' or '.join(QUANTIZATIONS)}, not {quantization!r}")
    dummy = load_format == "dummy"
    source = random_weights(shape, seed, target, device) if dummy else Checkpoint(folder, shape).read
    builder = _Builder(shape, source, target, device, quantized=quantization == "int8")
    return builder.build(kernels, max_model_len or shape.max_position_embeddings)


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

    def __init__(
        self, shape: ModelShape, source: Source, dtype: torch.dtype, device: torch.device, *, quantized: bool
    ) -> None:
        self._quantized = quantized
        self._shape = shape
        self._shapes = shape.parameter_shapes()
        self._source = source
        self._dtype = dtype
        self._device = device

    def build(self, kernels: Backend, max_model_len: int) -> Decoder:
        shape = self._shape
        compiled = self._is_compiled(kernels)
        if self._quantized and not compiled:
            raise ConfigError(
                f"--quantization int8: there are kernels for it only on CPUs, with --attention-backend auto or cpu, "
                f"for models with {FITTING}, and not for this one in {str(self._dtype).removeprefix('torch.')} on this "
                f"{self._device.type} with {kernels.name} attention"
            )
        embedding = self._stack("model.embed_tokens.weight")
        full = Rotary(shape.rope, shape.head_dim, max_model_len, self._device)
        local = full
        if shape.local_rope is not None:
            local = Rotary(shape.local_rope, shape.head_dim, max_model_len, self._device)
        tied = shape.tied_embeddings
        output = Linear(embedding if tied else self._stack("lm_head.weight"), quantized=self._quantized)
        head = Head(output, embedding if tied else None)
        norm = RmsNorm(
            self._stack("model.norm.weight"), shape.norm_eps, adds_one=shape.norm_adds_one, dtype=self._dtype
        )
        layers = self._layers((full, local), kernels, compiled=compiled)
        return Decoder(shape, embedding=embedding, layers=layers, norm=norm, head=head)

    def _is_compiled(self, kernels: Backend) -> bool:
        if kernels.name != "cpu":
            return False
        # Imported on demand: it loads the CPU kernels, which a GPU server does without.
        from octavo.models.compiled import fits

        return fits(self._shape, self._dtype, quantized=self._quantized)

    def _layers(self, ropes: tuple[Rotary, Rotary], kernels: Backend, *, compiled: bool) -> LayerStack:
        if not compiled:
            return TorchLayers(self._shape, self._tensors(), self._dtype, ropes, kernels)
        from octavo.models.compiled import CompiledLayers

        return CompiledLayers(self._shape, self._tensors(), self._dtype, ropes, quantized=self._quantized)

    def _tensors(self) -> Iterator[LayerTensors]:
        shape = self._shape
        # With norms on both sides, what other families call the post-attention norm is the one before the MLP.
        mlp_norm = "pre_feedforward_layernorm" if shape.post_norms else "post_attention_layernorm"
        for layer in range(shape.num_layers):
            prefix = f"model.layers.{layer}."
            attention, mlp = prefix + "self_attn.", prefix + "mlp."
            qkv, output = [f"{attention}{part}_proj" for part in "qkv"], [attention + "o_proj"]
            gate_up, down = [f"{mlp}{part}_proj" for part in ("gate", "up")], [mlp + "down_proj"]
            yield LayerTensors(
                qkv=self._weight(qkv),
                output=self._weight(output),
                gate_up=self._weight(gate_up),
                down=self._weight(down),
                qkv_bias=self._bias(qkv) if shape.qkv_bias else None,
                output_bias=self._bias(output) if shape.output_bias else None,
                gate_up_bias=self._bias(gate_up) if shape.mlp_bias else None,
                down_bias=self._bias(down) if shape.mlp_bias else None,
                attention_norm=self._weight([prefix + "input_layernorm"]),
                mlp_norm=self._weight([prefix + mlp_norm]),
                head_norm=self._head_norm(attention) if shape.qk_norm else None,
                attention_post_norm=self._weight([prefix + "post_attention_layernorm"]) if shape.post_norms else None,
                mlp_post_norm=self._weight([prefix + "post_feedforward_layernorm"]) if shape.post_norms else None,
            )

    def _weight(self, parts: list[str]) -> Tensor:
        return self._stack(*(f"{part}.weight" for part in parts))

    def _bias(self, parts: list[str]) -> Tensor:
        return self._stack(*(f"{part}.bias" for part in parts))

    def _head_norm(self, prefix: str) -> Tensor:
        shape = self._shape
        q, k = self._stack(f"{prefix}q_norm.weight"), self._stack(f"{prefix}k_norm.weight")
        return torch.cat((q.expand(shape.num_q_heads, -1), k.expand(shape.num_kv_heads, -1)))

    def _stack(self, *names: str) -> Tensor:
        """The named tensors on top of each other, each copied once from where it is to where it belongs."""
        sizes = [self._shapes[name] for name in names]
        rows = [size[0] for size in sizes]
        stacked = torch.empty((sum(rows), *sizes[0][1:]), dtype=self._dtype, device=self._device)
        for place, name in zip(torch.split(stacked, rows), names, strict=True):
            place.copy_(self._source(name))
        return stacked
