"""What a decoder looks like, read from a model folder's JSON files.

The families differ in a handful of places, and `ModelShape` has one field for each of them; nothing below this
module asks for a family's name. Loads neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError, ModelNotFoundError, UnsupportedModelError
from octavo.models.processor import computes_in

Json = Mapping[str, Any]

SERVED_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Name → bytes per number, of the types in which models are served."""

# What our kernels for CPUs ask of a model. They know these numbers as well, but load numba.
TILE_WIDTH, TILE_ROWS = 32, 16
MOST_SHARING = 32  # query heads of a KV head
FITTING = "widths that are multiples of 32, heads of a multiple of 16, at most 32 query heads for each KV head"

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class RopeShape:
    """One set of rotary frequencies (arXiv:2104.09864) and how it is stretched to longer contexts.

    Attributes:
        theta: The base of the frequencies.
        kind: One of `ROPE_KINDS`.
        factor: By how much the context is stretched; unused by ``default``.
        trained_len: The context length before stretching (``original_max_position_embeddings``); for ``dynamic``
            the model's ``max_position_embeddings``.
        low_freq_factor: ``llama3``: wavelengths above ``trained_len / low_freq_factor`` are stretched fully.
        high_freq_factor: ``llama3``: wavelengths below ``trained_len / high_freq_factor`` are left alone.
        beta_fast: ``yarn``: rotations within ``trained_len`` above which a dimension is left alone.
        beta_slow: ``yarn``: rotations below which a dimension is stretched fully.
        truncate: ``yarn``: round the bounds of the ramp between the two outwards.
        attention_factor: ``yarn``: factor on cosine and sine.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    trained_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder-only transformer with grouped-query attention and a gated MLP.

    Attributes:
        architecture: The class name in ``config.json``.
        hidden_size: Width of the residual stream.
        num_layers: Decoder layers.
        num_q_heads: Query heads.
        num_kv_heads: Key and value heads; divides ``num_q_heads``.
        head_dim: Width of one head; even.
        intermediate_size: Width of the MLP.
        vocab_size: Rows of the embedding.
        norm_eps: Added to the mean square in every RMSNorm.
        activation: One of `ACTIVATIONS`, on the gate of the MLP.
        max_position_embeddings: The longest sequence the model was made for.
        windows: Per layer, how many keys a query sees, its own included; 0 means all.
        rope: Rotary frequencies of layers without a window, and of all layers if ``local_rope`` is None.
        local_rope: Rotary frequencies of layers with a window, if they have their own (Gemma 3).
        tied_embeddings: The output layer uses the embedding's weights.
        qkv_bias: The Q, K and V projections have biases.
        output_bias: The attention's output projection has one.
        mlp_bias: The three projections of the MLP have biases.
        qk_norm: Q and K heads are normalised before rotation (Qwen 3, Gemma 3).
        norm_adds_one: RMSNorm multiplies with ``1 + weight`` (Gemma).
        post_norms: Attention and MLP outputs are normalised before they join the residual stream (Gemma).
        embedding_scale: Factor on the embeddings.
        attention_scale: Factor on the attention scores.
        attention_softcap: Bound on the attention scores (Gemma 2); 0 means none.
        logit_softcap: Bound on the logits; 0 means none.
        eos_token_ids: Tokens that end a generation.
        dtype: The checkpoint's own type, in torch's spelling.
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    activation: str
    max_position_embeddings: int
    windows: tuple[int, ...]
    rope: RopeShape
    local_rope: RopeShape | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_adds_one: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 1.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"

    @classmethod
    def read(cls, folder: Path, *, trust_remote_code: bool = False) -> ModelShape:
        """Reads ``config.json`` and, if there is one, ``generation_config.json``.

        Args:
            folder: The model folder.
            trust_remote_code: Accept a config that names Python code of its own. The code is not run: the folder
                is served as the architecture that it claims to be.

        Raises:
            ModelNotFoundError: There is no ``config.json``.
            UnsupportedModelError: It is malformed, or describes something that the decoder does not do.
        """
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(f"{folder} has no config.json")
        config = _read_json(folder / "config.json")
        generation = (
            _read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
        )
        if "auto_map" in config and not trust_remote_code:
            raise UnsupportedModelError(
                f"{folder / 'config.json'} names Python code of its own (auto_map), which Octavo does not run; "
                "--trust-remote-code serves it with Octavo's own code for its architecture instead"
            )
        return shape_from_config(config, generation)

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_q_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, or of all value heads."""
        return self.num_kv_heads * self.head_dim

    def served_dtype(self, requested: str, device: str) -> str:
        """The type in which the model is served, by its name in torch.

        Args:
            requested: One of `SERVED_DTYPES`, or ``auto`` for the checkpoint's own; bfloat16 stands in for float32,
                which costs twice the memory and time for digits that nobody reads, and for types we do not compute in.
                On a CPU that is slow in that type (`octavo.models.processor`) it is float32 after all.
            device: "cpu" or "cuda".

        Raises:
            ConfigError: It is none of these.
        """
        if requested == "auto":
            own = self.dtype if self.dtype in ("bfloat16", "float16") else "bfloat16"
            return own if device != "cpu" or computes_in(own, tiled=self.fits_tiles) else "float32"
        if requested not in SERVED_DTYPES:
            raise ConfigError(f"dtype must be auto, {', '.join(SERVED_DTYPES)}, not {requested!r}")
        return requested

    @property
    def fits_tiles(self) -> bool:
        """Whether our own kernels for CPUs can run all layers (`octavo.models.compiled`), which are `FITTING`."""
        widths = (self.hidden_size, self.q_size, self.intermediate_size)
        return (
            all(width % TILE_WIDTH == 0 for width in widths)
            and self.head_dim % TILE_ROWS == 0
            and self.num_q_heads // self.num_kv_heads <= MOST_SHARING
        )

    def kv_bytes_per_token(self, row_bytes: int) -> int:
        """Bytes that one token takes in the KV cache of all layers, where K or V of one head takes ``row_bytes``."""
        return self.num_layers * 2 * self.num_kv_heads * row_bytes

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied ones counted once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint: its name in Hugging Face's spelling → its shape."""
        hidden, vocab = self.hidden_size, self.vocab_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            shapes |= {prefix + name: shape for name, shape in self._layer_shapes().items()}
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (vocab, hidden)
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        projections = {
            "self_attn.q_proj": (self.q_size, hidden, self.qkv_bias),
            "self_attn.k_proj": (self.kv_size, hidden, self.qkv_bias),
            "self_attn.v_proj": (self.kv_size, hidden, self.qkv_bias),
            "self_attn.o_proj": (hidden, self.q_size, self.output_bias),
            "mlp.gate_proj": (inner, hidden, self.mlp_bias),
            "mlp.up_proj": (inner, hidden, self.mlp_bias),
            "mlp.down_proj": (hidden, inner, self.mlp_bias),
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (rows, columns, bias) in projections.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if self.post_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{name}.weight": (hidden,) for name in norms}
        if self.qk_norm:
            shapes |= {f"self_attn.{name}.weight": (self.head_dim,) for name in ("q_norm", "k_norm")}
        return shapes


@dataclass(frozen=True)
class _Family:
    """What an architecture fixes, and what its configs leave out.

    transformers writes a config without the values that equal its own defaults, and Gemma 3's multimodal folders
    leave out nearly everything, so the defaults are part of the format.
    """

    fixed: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    qkv_bias: bool | None = None  # None: `attention_bias` decides for Q, K, V and the output alike
    gemma: bool = False


_GEMMA_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

_QWEN_DEFAULTS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

_FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(qkv_bias=False, defaults={"sliding_window": 4096, "num_key_value_heads": 8}),
    "Qwen2ForCausalLM": _Family(qkv_bias=True, defaults=_QWEN_DEFAULTS),
    "Qwen3ForCausalLM": _Family(fixed={"qk_norm": True}, defaults=_QWEN_DEFAULTS | {"head_dim": 128}),
    "Gemma2ForCausalLM": _Family(
        gemma=True,
        defaults=_GEMMA_DEFAULTS
        | {
            "max_position_embeddings": 8192,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": _Family(
        gemma=True,
        fixed={"qk_norm": True},
        defaults=_GEMMA_DEFAULTS
        | {
            "max_position_embeddings": 131072,
            "vocab_size": 262208,
            "sliding_window_pattern": 6,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
    ),
}
# A multimodal folder whose text part is one of the above, under `text_config`.
_TEXT_PART = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}

SUPPORTED_ARCHITECTURES = (*_FAMILIES, *_TEXT_PART)

_COMMON_DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10_000.0, "tie_word_embeddings": False}


def shape_from_config(config: Json, generation: Json) -> ModelShape:
    """Builds the shape from the contents of ``config.json`` and ``generation_config.json``.

    Raises:
        UnsupportedModelError: The architecture, or one of its options, is not one that the decoder covers.
    """
    architecture = _architecture(config)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"the weights are quantized ({method}); give the unquantized checkpoint, or a GGUF file"
        )
    text = {**config, **config["text_config"]} if architecture in _TEXT_PART else config
    family = _FAMILIES[_TEXT_PART.get(architecture, architecture)]
    text = {**_COMMON_DEFAULTS, **family.defaults, **text}
    try:
        return _build(architecture, family, text, generation)
    except KeyError as error:
        raise UnsupportedModelError(f"config.json of this {architecture} does not say {error}") from error


def _architecture(config: Json) -> str:
    named = config.get("architectures") or ["none"]
    if named[0] not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedModelError(
            f"the architecture {named[0]} is not supported; these are: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return str(named[0])


def _build(architecture: str, family: _Family, config: Json, generation: Json) -> ModelShape:
    heads, hidden, layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or hidden // heads
    attention_bias = bool(config.get("attention_bias", False))
    rope, local_rope = _ropes(config)
    shape = ModelShape(
        architecture=architecture,
        hidden_size=hidden,
        num_layers=layers,
        num_q_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        norm_eps=config["rms_norm_eps"],
        activation=config["hidden_activation"] if family.gemma else config["hidden_act"],
        max_position_embeddings=config["max_position_embeddings"],
        windows=_windows(config),
        rope=rope,
        local_rope=local_rope,
        tied_embeddings=config["tie_word_embeddings"],
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=attention_bias if family.qkv_bias is None else False,
        mlp_bias=bool(config.get("mlp_bias", False)),
        norm_adds_one=family.gemma,
        post_norms=family.gemma,
        embedding_scale=hidden**0.5 if family.gemma else 1.0,
        attention_scale=(config["query_pre_attn_scalar"] if family.gemma else head_dim) ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping") or 0.0,
        logit_softcap=config.get("final_logit_softcapping") or 0.0,
        eos_token_ids=_token_ids(generation.get("eos_token_id", config.get("eos_token_id"))),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        **family.fixed,
    )
    _check(shape, config)
    return shape


def _check(shape: ModelShape, config: Json) -> None:
    if shape.activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"the activation {shape.activation!r} is not supported; these are: {', '.join(ACTIVATIONS)}"
        )
    if shape.num_q_heads % shape.num_kv_heads:
        raise UnsupportedModelError(
            f"{shape.num_q_heads} query heads cannot share {shape.num_kv_heads} key-value heads evenly"
        )
    if shape.head_dim % 2:
        raise UnsupportedModelError(f"rotary positions need an even head_dim, not {shape.head_dim}")
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError("the model attends in both directions: it embeds text and cannot generate it")


def _windows(config: Json) -> tuple[int, ...]:
    """Per layer, the window of its attention; the families state it in four ways."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window") or 0
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        window = 0
    if kinds := config.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if pattern := config.get("sliding_window_pattern"):
        return tuple(window if (layer + 1) % pattern else 0 for layer in range(layers))
    if "max_window_layers" in config:
        return tuple(window if layer >= config["max_window_layers"] else 0 for layer in range(layers))
    return tuple(window for _ in range(layers))


def _ropes(config: Json) -> tuple[RopeShape, RopeShape | None]:
    """The rotary frequencies of full layers, and of windowed layers if those have their own.

    transformers 5 writes ``rope_parameters``, by layer type if they differ; before, ``rope_scaling`` applied to full
    layers and ``rope_theta`` and ``rope_local_base_freq`` stood beside it.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local_theta = config.get("rope_local_base_freq")
    if "full_attention" in parameters or "sliding_attention" in parameters:
        full, local = parameters.get("full_attention") or {}, parameters.get("sliding_attention") or {}
        return _rope(config, full, config["rope_theta"]), _rope(config, local, local_theta or config["rope_theta"])
    return _rope(config, parameters, config["rope_theta"]), None if local_theta is None else RopeShape(local_theta)


def _rope(config: Json, parameters: Json, theta: float) -> RopeShape:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = parameters.get("rope_theta") or theta
    if kind not in ROPE_KINDS:
        raise UnsupportedModelError(f"the rope type {kind!r} is not supported; these are: {', '.join(ROPE_KINDS)}")
    if (parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModelError("rotary positions on a part of each head (partial_rotary_factor) are not supported")
    if kind == "default":
        return RopeShape(theta)
    limit = config["max_position_embeddings"]
    trained_len = parameters.get("original_max_position_embeddings") or limit
    factor = parameters.get("factor") or limit / trained_len
    return RopeShape(
        theta=theta,
        kind=kind,
        factor=factor,
        trained_len=limit if kind == "dynamic" else trained_len,
        low_freq_factor=parameters.get("low_freq_factor") or 1.0,
        high_freq_factor=parameters.get("high_freq_factor") or 4.0,
        beta_fast=parameters.get("beta_fast") or 32.0,
        beta_slow=parameters.get("beta_slow") or 1.0,
        truncate=parameters.get("truncate", True),
        attention_factor=_attention_factor(parameters, factor) if kind == "yarn" else 1.0,
    )


def _attention_factor(parameters: Json, factor: float) -> float:
    """YaRN's temperature, arXiv:2309.00071, equation 22; ``mscale`` is DeepSeek's refinement of it."""

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := parameters.get("attention_factor")) is not None:
        return float(given)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return temperature(mscale) / temperature(mscale_all_dim)
    return temperature(1.0)


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} does not hold a JSON object")
    return content
