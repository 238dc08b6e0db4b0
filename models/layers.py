"""The operations of a decoder layer, as plain callables over weight tensors.

There is no ``nn.Module`` here: nothing is trained, and at one token per sequence a step of a small model is bound
by what Python does around the kernels.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.models.shape import RopeShape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def gated(activation: str, gate_up: Tensor) -> Tensor:
    """The MLP's middle: ``activation(gate) · up`` of the two halves of each row, [T, 2 · n] → [T, n]."""
    if activation == "silu" and _is_fused(gate_up):
        product: Tensor = _fused().silu_mul(gate_up)
        return product
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate).mul_(up)


def warm_up_fused(width: int, dtype: torch.dtype) -> None:
    """Compiles the CPU's fused kernels for a model of this width and type."""
    _fused().warm_up(width, dtype)


@cache
def _fused() -> ModuleType:
    # Imported on demand: it loads the CPU kernels, which a GPU server does without.
    from octavo.kernels.cpu import fused

    return fused


@cache
def _packing() -> ModuleType:
    from octavo.kernels.cpu import packing

    return packing


@cache
def _int8() -> ModuleType:
    from octavo.kernels.cpu import int8

    return int8


@cache
def _linear() -> ModuleType:
    from octavo.kernels.cpu import linear

    return linear


@cache
def _head() -> ModuleType:
    from octavo.kernels.cpu import head

    return head


def _is_fused(x: Tensor) -> bool:
    """Whether the CPU's fused kernels take this tensor."""
    return x.device.type == "cpu" and x.dim() == 2 and x.is_contiguous()


class Layout(enum.Enum):
    """How a linear layer's weights lie in memory."""

    PLAIN = "rows"
    ONEDNN = "oneDNN's"
    PANELS = "our own"


def _pack(weight: Tensor) -> tuple[Layout, Tensor]:
    """The weights in the layout that is fastest here."""
    if weight.device.type != "cpu":
        return Layout.PLAIN, weight
    if _packing().fits(weight):
        return Layout.PANELS, _packing().pack(weight)
    if _has_onednn(weight.dtype):
        return Layout.ONEDNN, torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return Layout.PLAIN, weight


def _has_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


class Linear:
    """``x Wᵀ + b``.

    On a CPU the weights are reordered once: for our own kernel (`octavo.kernels.cpu.linear`), or, if that does not take
    them, into oneDNN's layout where it has instructions for their type. ``F.linear`` would reorder them in every call,
    and for one row of bfloat16 it falls back to a loop that is some twenty times slower.

    Args:
        weight: [out, in]; may be dropped by the caller, as packing makes its own copy.
        bias: [out], or None.
        quantized: Keep the weights in int8, with a scale for each output; on CPUs only.
    """

    __slots__ = ("_bias", "_layout", "_num_outputs", "_scales", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, quantized: bool = False) -> None:
        self._num_outputs = weight.shape[0]
        self._scales: Tensor | None = None
        if quantized:
            numbers, self._scales = _int8().quantize(weight)
            self._layout, self._weight = Layout.PANELS, _int8().pack(numbers)
        else:
            self._layout, self._weight = _pack(weight)
        self._bias = bias.float() if bias is not None and self._layout is Layout.PANELS else bias

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        if self._layout is Layout.PANELS:
            return self._multiply(x, x.dtype)
        if self._layout is Layout.ONEDNN:
            packed: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")
            return packed
        return F.linear(x, self._weight, self._bias)

    def unrounded(self, x: Tensor) -> Tensor | None:
        """[T, in] → float32 [T, out], as summed; None if this layout's kernel rounds its results."""
        return self._multiply(x, torch.float32) if self._layout is Layout.PANELS else None

    def _multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        product: Tensor = _linear().linear(x, self._weight, self._num_outputs, self._bias, dtype, self._scales)
        return product

    def after(self, norm: RmsNorm) -> Callable[[Tensor, Tensor], Tensor] | None:
        """A norm and this layer in one call, unrounded: see `Head.after`; None if there is none for this layout."""
        if self._layout is not Layout.PANELS or self._bias is not None:
            return None
        together: Callable[[Tensor, Tensor], Tensor] = _head().NormedLinear(
            norm.weight, norm.eps, self._weight, self._num_outputs, norm.dtype, self._scales
        )
        return together

    @property
    def layout(self) -> Layout:
        """How the weights lie in memory."""
        return self._layout

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it keeps in memory."""
        return tuple(tensor for tensor in (self._weight, self._scales, self._bias) if tensor is not None)


class Head:
    """The output layer: hidden states to float32 logits.

    oneDNN returns 16-bit results, so bfloat16 logits around 25 come in steps of 0.125, near ties are common, and
    greedy decoding would break them by token id. With its layout the tokens within two steps of the best are therefore
    scored again in float32, from the same weights; they are two or three per row.

    Args:
        linear: The layer itself.
        weight: [vocab, hidden], the layer's weights as they were before packing, which for tied embeddings are in
            memory anyway; None does without the second look.
    """

    __slots__ = ("_linear", "_weight")

    def __init__(self, linear: Linear, weight: Tensor | None) -> None:
        self._linear = linear
        self._weight = weight if linear.layout is Layout.ONEDNN else None

    def __call__(self, hidden: Tensor) -> Tensor:
        """[N, hidden] → float32 [N, vocab]."""
        if (exact := self._linear.unrounded(hidden)) is not None:
            return exact
        rounded = self._linear(hidden)
        logits = rounded.float()
        if self._weight is not None:
            best = rounded.amax(dim=-1, keepdim=True)
            step = best.abs() * torch.finfo(rounded.dtype).eps
            rows, tokens = (rounded >= best - 2 * step).nonzero(as_tuple=True)
            logits[rows, tokens] = (hidden[rows].float() * self._weight[tokens].float()).sum(dim=-1)
        return logits

    def after(self, norm: RmsNorm) -> Callable[[Tensor, Tensor], Tensor]:
        """The last norm and this layer: float32 [T, hidden], and the rows that are wanted, int64 [N] → float32
        [N, vocab]."""
        return self._linear.after(norm) or (lambda x, rows: self(norm(x[rows])))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it keeps in memory."""
        return self._linear.tensors


class RmsNorm:
    """Root-mean-square normalisation over the last dimension (arXiv:1910.07467), in float32.

    Args:
        weight: [n], or [heads, n] if every head has its own.
        eps: Added to the mean square.
        adds_one: Multiply with ``1 + weight`` (Gemma).
        dtype: Type of the result.

    Attributes:
        weight: float32, what is multiplied with. eps, dtype: as above.
    """

    __slots__ = ("_per_head", "_shape", "dtype", "eps", "weight")

    def __init__(self, weight: Tensor, eps: float, *, adds_one: bool, dtype: torch.dtype) -> None:
        # One plus a small weight needs more digits than 16 bits have.
        self.weight = weight.float() + 1.0 if adds_one else weight.float()
        self._shape = (weight.shape[-1],)
        self._per_head = weight.dim() > 1
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """[..., n] of any type → [..., n] of ``dtype``."""
        if _is_fused(x) and x.dtype is torch.float32 and not self._per_head:
            normed: Tensor = _fused().rms_norm(x, self.weight, self.eps, self.dtype)
            return normed
        if self._per_head:
            return F.rms_norm(x.float(), self._shape, None, self.eps).mul_(self.weight).to(self.dtype)
        return F.rms_norm(x.float(), self._shape, self.weight, self.eps).to(self.dtype)


class Rotary:
    """Cosines and sines of every position, computed once.

    Args:
        rope: The frequencies.
        head_dim: Width of a head.
        max_len: Positions 0 … ``max_len`` − 1 can be looked up.
        device: Where.
    """

    __slots__ = ("_table",)

    def __init__(self, rope: RopeShape, head_dim: int, max_len: int, device: torch.device) -> None:
        angles = torch.outer(torch.arange(max_len, dtype=torch.float32), inverse_frequencies(rope, head_dim, max_len))
        table = torch.cat((angles.cos(), angles.sin()), dim=-1) * rope.attention_factor
        self._table = table.to(device)

    @property
    def table(self) -> Tensor:
        """float32 [max_len, head_dim]: cosines and sines of every position's pairs."""
        return self._table

    def rows(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `rotate` needs for these positions.

        Args:
            positions: int64 [T].
            dtype: The heads' type.

        Returns:
            Cosines ``(c, c)`` and signed sines ``(−s, s)``, each [T, 1, head_dim].
        """
        cos, sin = F.embedding(positions, self._table).to(dtype).unsqueeze(1).chunk(2, dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864) in the halves layout: pair i is (x[i], x[i + head_dim / 2]).

    Swapping the halves is a roll by half the width; the sign of the swapped half sits in ``sin``.

    Args:
        heads: [T, heads, head_dim].
        cos: [T, 1, head_dim], from `Rotary.rows`.
        sin: [T, 1, head_dim], from `Rotary.rows`.
    """
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)


def inverse_frequencies(rope: RopeShape, head_dim: int, max_len: int) -> Tensor:
    """Radians per position of every pair of dimensions, float32 [head_dim / 2].

    A served model rotates a key once and keeps it, so ``dynamic`` cannot follow each sequence's length as the
    original does: it takes the base for ``max_len``, and is the unstretched one up to the trained length.
    """
    theta = rope.theta
    if rope.kind == "dynamic" and max_len > rope.trained_len:
        stretch = rope.factor * max_len / rope.trained_len - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    match rope.kind:
        case "linear":
            return plain / rope.factor
        case "llama3":
            return _stretch_llama3(plain, rope)
        case "yarn":
            return _stretch_yarn(plain, rope, head_dim)
    return plain


def _stretch_llama3(plain: Tensor, rope: RopeShape) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those in between blended."""
    rotations = rope.trained_len * plain / (2 * math.pi)
    kept = ((rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * plain / rope.factor + kept * plain


def _stretch_yarn(plain: Tensor, rope: RopeShape, head_dim: int) -> Tensor:
    """YaRN, arXiv:2309.00071, section 3.2: the blend is a ramp over the dimensions."""

    def dimension_with(rotations: float) -> float:
        return head_dim * math.log(rope.trained_len / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_with(rope.beta_fast), dimension_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    stretched = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return stretched * plain / rope.factor + (1 - stretched) * plain
