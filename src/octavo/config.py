"""Configuration: frozen dataclasses, composed, resolved and validated once.

Each field carries its own help text and command-line spelling, so that the dataclasses, the ``--help`` page
and the documentation cannot drift apart. Values that are discovered at start (the number of KV blocks, the
device that ``auto`` meant) are returned by whoever discovers them and passed on; nothing here is written to
after construction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any

from octavo.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_TENANT = "default"  # whose requests are that name no tenant

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?\s*$")
_SIZE_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Reads a size in bytes: ``2GiB``, ``500MB``, ``1073741824``. ``i`` means powers of 1024.

    Raises:
        ConfigError: The text is not a size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size in bytes; write it as 2GiB, 500MB or 1073741824")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _SIZE_POWER[unit.lower()])


def parse_count(text: str) -> int:
    """Reads a count: ``4096``, ``32k`` (32 × 1024), ``1M``.

    Raises:
        ConfigError: The text is not a whole, non-negative count.
    """
    match = re.match(r"^\s*(\d+)\s*([kKmM]?)\s*$", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a count; write it as 4096, 32k or 1M")
    unit: int = 1024 ** _SIZE_POWER[match[2].lower()]
    return int(match[1]) * unit


def parse_real(text: str) -> float:
    """Reads a number such as ``0.9``.

    Raises:
        ConfigError: The text is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{text!r} is not a number; write it as 0.9")
    return value


def parse_int(text: str) -> int:
    """Reads a whole number, negative ones included.

    Raises:
        ConfigError: The text is not a whole number.
    """
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a whole number") from None


def parse_names(text: str) -> tuple[str, ...]:
    """Reads names with commas between them."""
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] = str,
    choices: tuple[str, ...] | None = None,
    flag: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        default: The value when nobody says otherwise.
        help: One sentence for ``--help``.
        parse: Turns the command line's text into the value; raises `ConfigError`.
        choices: The accepted values, if they are few.
        flag: The option's spelling, without dashes; by default the field's name with ``-`` for ``_``.
    """
    return field(default=default, metadata={"help": help, "parse": parse, "choices": choices, "flag": flag})


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < 1:
            raise ConfigError(f"{flag_of(owner, name)} must be at least 1, not {value}")


def _not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value >= 0:  # nor NaN
            raise ConfigError(f"{flag_of(owner, name)} must not be negative, not {value}")


def _one_of(owner: object) -> None:
    for spec in options(type(owner)):
        value, choices = getattr(owner, spec.name), spec.metadata["choices"]
        if choices is not None and value not in choices:
            raise ConfigError(f"--{_flag(spec)} must be one of {', '.join(choices)}, not {value!r}")


def _flag(spec: Field[Any]) -> str:
    return spec.metadata.get("flag") or spec.name.replace("_", "-")


def flag_of(owner: object, name: str) -> str:
    """The command-line spelling of a field, dashes included."""
    return next(f"--{_flag(spec)}" for spec in fields(owner) if spec.name == name)  # type: ignore[arg-type]


def options(cls: type) -> Iterator[Field[Any]]:
    """The fields of a config class that are command-line options."""
    return (spec for spec in fields(cls) if "help" in spec.metadata)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights are loaded."""

    model: str = option(DEFAULT_MODEL, "a folder, a GGUF file, a Hub id or a built-in name")
    load_format: str = option(
        "auto",
        "auto reads the model's files; dummy makes seeded random weights from its config alone",
        choices=("auto", "dummy"),
    )
    dtype: str = option(
        "auto",
        "the type of weights and activations; auto takes the checkpoint's own, bfloat16 for float32 ones, and float32 "
        "on CPUs that are slow in that",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = option(
        "none",
        "int8 keeps weights in 8 bits with a scale for each output: tokens come up to half faster, prompts take up "
        "to half as long again, and about one token in twenty is another; for models on CPUs",
        choices=("none", "int8"),
    )
    max_model_len: int | None = option(
        None,
        "the longest sequence (prompt + output, in tokens) to serve; default: the model's own limit, "
        "or what the KV pool can hold if that is less",
        parse=parse_count,
    )
    seed: int = option(0, "seed for sampling without a request seed, and for dummy weights", parse=parse_int)
    trust_remote_code: bool = option(False, "accept model folders whose config names Python code of its own")

    def __post_init__(self) -> None:
        _one_of(self)
        _positive(self, "max_model_len")


# Behind the numbers of a row of an int8 KV cache; see `octavo.kernels.kv_rows`.
KV_SCALE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The pool of KV blocks."""

    block_size: int = option(16, "tokens in one KV block", parse=parse_count)
    num_blocks: int | None = option(
        None, "number of KV blocks; default: as many as fit in --kv-cache-memory", parse=parse_count, flag="num-blocks"
    )
    memory: int | None = option(
        None,
        "bytes for the KV pool, such as 2GiB; default: --memory-ratio of what is free once the weights are loaded",
        parse=parse_bytes,
        flag="kv-cache-memory",
    )
    memory_ratio: float | None = option(
        None,
        "the share of free memory that the KV pool takes, between 0 and 1; default: 0.9 on a GPU, 0.5 without",
        parse=parse_real,
    )
    kv_cache_dtype: str = option(
        "auto",
        "the type of K and V; auto takes the model's own, int8 holds nearly twice as many tokens in the same memory, "
        "and decodes of long contexts take up to a quarter longer; CPUs only",
        choices=("auto", "int8"),
    )
    prefix_caching: bool = option(True, "reuse the KV blocks of equal prompt beginnings")
    swap_space: int | None = option(
        None,
        "bytes of host memory for KV blocks that left the device, such as 4GiB; default: on a GPU 4GiB, or a quarter "
        "of the free host memory if that is less; none without a GPU, where the pool lies in host memory itself",
        parse=parse_bytes,
    )
    swap_dir: str | None = option(None, "the folder for KV blocks on disk; needs --swap-disk")
    swap_disk: int = option(
        0, "bytes on disk for KV blocks that left the device, such as 20GiB; needs --swap-dir", parse=parse_bytes
    )

    def __post_init__(self) -> None:
        _one_of(self)
        _positive(self, "block_size", "num_blocks", "memory")
        _not_negative(self, "swap_space", "swap_disk")
        if self.num_blocks is not None and self.memory is not None:
            raise ConfigError("--num-blocks and --kv-cache-memory both set the pool's size; give one of them")
        if self.memory_ratio is not None and not 0 < self.memory_ratio < 1:
            raise ConfigError(f"--memory-ratio must lie between 0 and 1, not {self.memory_ratio}")
        if self.swap_disk and not self.swap_dir:
            raise ConfigError(f"--swap-disk {self.swap_disk} needs a folder to lie in; name it with --swap-dir")
        if self.swap_dir and not self.swap_disk:
            raise ConfigError(f"--swap-dir {self.swap_dir} needs a size, such as --swap-disk 20GiB")

    def row_bytes(self, head_dim: int, width: int) -> int:
        """Bytes of K or V of one token and head, of a model whose own type takes ``width`` bytes."""
        return head_dim + KV_SCALE_BYTES if self.kv_cache_dtype == "int8" else head_dim * width


@dataclass(frozen=True, kw_only=True)
class TenantConfig:
    """One tenant's share.

    Attributes:
        name: As requests name it.
        weight: Its share of the service under ``--policy fair``, against the others' weights.
        floor: KV blocks that are kept for it. ceiling: KV blocks that it may hold at most; None for all.

    Raises:
        ConfigError: A value is out of range.
    """

    name: str
    weight: float = 1.0
    floor: int = 0
    ceiling: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.@-]{1,64}", str(self.name)):
            raise ConfigError(
                f"--tenants: a tenant's name is made of up to 64 letters, digits and ._@-, and {self.name!r} is not"
            )
        if type(self.weight) not in (int, float) or not 1e-6 <= self.weight <= 1e6:
            raise ConfigError(f"--tenants: {self.name}'s weight must be a number from 1e-6 to 1e6, not {self.weight!r}")
        if self.floor < 0:
            raise ConfigError(f"--tenants: {self.name}'s floor must be 0 blocks or more, not {self.floor}")
        if self.ceiling is not None and self.ceiling < max(1, self.floor):
            raise ConfigError(
                f"--tenants: {self.name}'s ceiling must be at least 1 block and its floor of {self.floor}, "
                f"not {self.ceiling}"
            )


def parse_tenants(text: str) -> tuple[TenantConfig, ...]:
    """Reads tenants: ``chat:weight=2,floor=64;batch:ceiling=200``.

    Raises:
        ConfigError: A part of the text is not understood; names it.
    """
    tenants = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, settings = entry.partition(":")
        values: dict[str, Any] = {}
        for setting in filter(None, (part.strip() for part in settings.split(","))):
            key, _, value = setting.partition("=")
            if key not in _TENANT_SETTINGS or key in values or not value:
                known = ", ".join(_TENANT_SETTINGS)
                raise ConfigError(
                    f"--tenants: {setting!r} is not understood; write NAME:key=value with {known}, each once"
                )
            try:
                values[key] = _TENANT_SETTINGS[key](value)
            except ConfigError as error:
                raise ConfigError(f"--tenants: {name.strip()}'s {key}: {error}") from None
        tenants.append(TenantConfig(name=name.strip(), **values))
    return tuple(tenants)


def _as_tenants(given: Any) -> tuple[TenantConfig, ...]:
    """Tenants as text, or as configs, or as the mappings that they become on the way to another process."""
    if isinstance(given, str):
        return parse_tenants(given)
    try:
        return tuple(tenant if isinstance(tenant, TenantConfig) else TenantConfig(**tenant) for tenant in given)
    except TypeError as error:
        raise ConfigError(f"--tenants: {error}; a tenant has a name, a weight, a floor and a ceiling") from None


_TENANT_SETTINGS: dict[str, Callable[[str], Any]] = {"weight": parse_real, "floor": parse_count, "ceiling": parse_count}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How requests share the steps."""

    max_num_seqs: int = option(64, "sequences that run at the same time, at most", parse=parse_count)
    max_num_batched_tokens: int = option(
        512,
        "tokens computed in one step, at most: the token budget that decodes and prefill chunks share",
        parse=parse_count,
    )
    max_step_time: float = option(
        0.2,
        "seconds that a step may take for prompts' sake while others wait for their next token, as predicted from the "
        "steps before, or twice what decodes take if that is more; longer prompts are computed in more steps. "
        "0: as many tokens as --max-num-batched-tokens allows",
        parse=parse_real,
    )
    max_waiting: int = option(
        1024, "sequences that may wait; a request beyond that is refused with a 429", parse=parse_count
    )
    watermark_ratio: float = option(
        0.01, "the share of the pool kept free at admission, so that running sequences can grow", parse=parse_real
    )
    lookahead: int = option(
        32,
        "the most steps ahead for which admission keeps blocks free, so that letting one in does not push another out; "
        "fewer where giving way costs little",
        parse=parse_count,
    )
    policy: str = option(
        "fcfs",
        "who comes next: first come first served; the lowest priority number first, taking running requests' blocks "
        "if need be; or tenants in turn, by what their weights entitle them to",
        choices=("fcfs", "priority", "fair"),
    )
    prefer_cached: bool = option(
        False, "among requests that may come next, take the one with the longest cached prefix"
    )
    preemption: str = option(
        "auto",
        "what becomes of a sequence that has to give its blocks up: swap copies them to --swap-space and back, "
        "recompute computes them again, auto takes what is predicted to cost less",
        choices=("auto", "swap", "recompute"),
    )
    max_preemptions: int = option(
        3, "times that one sequence may be preempted; then it only runs when it cannot be any more", parse=parse_count
    )
    tenants: tuple[TenantConfig, ...] = option(
        (),
        "tenants, their weights, and the KV blocks they are sure of and may hold at most, such as "
        '"chat:weight=2,floor=64;batch:ceiling=200"',
        parse=parse_tenants,
    )
    pin_ratio: float = option(
        0.25, "the share of the pool that pinned prefixes may take, between 0 and 1", parse=parse_real
    )

    def __post_init__(self) -> None:
        _one_of(self)
        _positive(self, "max_num_seqs", "max_num_batched_tokens", "max_waiting", "max_preemptions")
        _not_negative(self, "lookahead", "max_step_time")
        tenants = _as_tenants(self.tenants)
        object.__setattr__(self, "tenants", tenants)
        names = [tenant.name for tenant in tenants]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"--tenants names {sorted(repeated)[0]!r} more than once")
        if not 0 <= self.pin_ratio <= 1:
            raise ConfigError(f"--pin-ratio must lie between 0 and 1, not {self.pin_ratio}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens ({self.max_num_batched_tokens}) must be at least --max-num-seqs "
                f"({self.max_num_seqs}): every running sequence may need one token of each step"
            )
        if not 0 <= self.watermark_ratio < 1:
            raise ConfigError(f"--watermark-ratio must lie between 0 and 1, not {self.watermark_ratio}")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Where and with which kernels the model runs."""

    device: str = option("auto", "cpu, or cuda; auto takes a GPU when there is one", choices=("auto", "cpu", "cuda"))
    attention_backend: str = option(
        "auto",
        "the paged-attention kernels: triton on a GPU, cpu (numba) without one, reference is plain torch",
        choices=("auto", "triton", "cpu", "reference"),
    )
    threads: int | None = option(
        None, "CPU threads for the model; default: the cores this process may use", parse=parse_count
    )
    deterministic: bool = option(False, "refuse to start where a request's tokens could depend on what runs beside it")

    def __post_init__(self) -> None:
        _one_of(self)
        _positive(self, "threads")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything the engine process needs to know."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        backend, device = self.execution.attention_backend, self.execution.device
        if self.cache.kv_cache_dtype == "int8" and (backend == "triton" or (backend == "auto" and device == "cuda")):
            raise ConfigError(
                f"--kv-cache-dtype int8: there are kernels for it for CPUs only, not with --device {device} "
                f"--attention-backend {backend}"
            )

    @staticmethod
    def sections() -> dict[str, type]:
        """Section name → its config class, in the order of ``--help``."""
        return {"model": ModelConfig, "cache": CacheConfig, "scheduler": SchedulerConfig, "execution": ExecutionConfig}

    @classmethod
    def of(cls, **values: Any) -> EngineConfig:
        """Builds the config from flat keyword arguments, each going to the section that knows it.

        Raises:
            ConfigError: A name is unknown, or a value is out of range.
        """
        sections = {name: take_known(section, values) for name, section in cls.sections().items()}
        if values:
            known = sorted(f.name for section in cls.sections().values() for f in fields(section))
            raise ConfigError(f"unknown option {next(iter(values))!r}; the known ones are {', '.join(known)}")
        return cls(**sections)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP front end."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0 takes a free one", parse=parse_int)
    served_model_name: str | None = option(None, "the model name that clients use; default: MODEL")
    tool_format: str = option(
        "auto",
        "how the model writes calls of tools; auto finds it in the chat template, and describes tools itself where "
        "that knows none",
        choices=("auto", "hermes", "llama3", "mistral", "mistral-args", "qwen3-coder"),
    )
    shutdown_timeout: float = option(
        30.0, "seconds that running requests get to finish after SIGTERM", parse=parse_real
    )
    max_body_bytes: int = option(8 * 1024 * 1024, "the largest request body", parse=parse_bytes)
    max_open_requests: int = option(
        1024, "requests that one tenant may have open; one beyond that is refused with a 429", parse=parse_count
    )
    api_keys: str | None = option(
        None,
        "a file with API keys, as `octavo key` makes them; every request then needs one. Keys may also be given in the "
        "environment variable OCTAVO_API_KEY",
    )
    allow_anonymous: bool = option(False, "serve without API keys although other machines can reach --host")
    public_metrics: bool = option(
        False, "answer /metrics without an API key; otherwise it needs one that is marked admin"
    )
    metrics_compat: str = option(
        "none",
        "whose names for metrics to export on top of Octavo's own, for gateways that know only those",
        choices=("none", "vllm"),
    )
    tokenizer_info: bool = option(
        False,
        "answer /tokenizer_info, which tells the whole chat template; off by default, since a template may hold "
        "instructions of the operator's that no client is meant to read",
    )
    allowed_hosts: tuple[str, ...] | None = option(
        None,
        "names by which clients may call this server besides localhost, --host and IP addresses, with commas between "
        "them, or * for any; default: any with API keys, none without",
        parse=parse_names,
    )
    cors_origins: tuple[str, ...] = option(
        (),
        "web sites whose pages may use this server, such as https://chat.example, with commas between them, or * for "
        "any",
        parse=parse_names,
    )
    tls_cert: str | None = option(None, "a file with the certificate chain, for HTTPS; needs --tls-key")
    tls_key: str | None = option(None, "the file with the certificate's private key; needs --tls-cert")
    log_level: str = option("info", "how much the server logs", choices=("debug", "info", "warning", "error"))
    log_format: str = option(
        "human", "how the log looks: lines for people, or a JSON object on each", choices=("human", "json")
    )
    log_requests: bool = option(True, "log a line for each request when it ends; never what was asked or answered")
    log_stats_interval: float = option(
        10.0, "seconds between two lines about load, KV and speed while there is work; 0 for none", parse=parse_real
    )
    otlp_endpoint: str | None = option(
        None,
        "an OpenTelemetry collector, such as http://localhost:4318, that gets a span for each request for a "
        "generation, over HTTP; needs `pip install octavo[otel]`",
    )

    def __post_init__(self) -> None:
        _one_of(self)
        _positive(self, "max_body_bytes", "max_open_requests")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must lie between 0 and 65535, not {self.port}")
        if self.shutdown_timeout < 0:
            raise ConfigError(f"--shutdown-timeout must not be negative, got {self.shutdown_timeout}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together; give both or neither")
        if self.log_stats_interval < 0:
            raise ConfigError(f"--log-stats-interval must not be negative, got {self.log_stats_interval}")
        if self.otlp_endpoint is not None and not _COLLECTOR.fullmatch(self.otlp_endpoint):
            raise ConfigError(
                f"--otlp-endpoint: {self.otlp_endpoint!r} is not understood; write it as http://localhost:4318"
            )
        _check_names("--allowed-hosts", self.allowed_hosts or (), _HOST, "octavo.example, without a port")
        _check_names("--cors-origins", self.cors_origins, _ORIGIN, "https://chat.example or http://localhost:3000")


_HOST = re.compile(r"[A-Za-z0-9_.-]+")
_COLLECTOR = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d+)?")


def _check_names(flag: str, names: tuple[str, ...], form: re.Pattern[str], example: str) -> None:
    for name in names:
        if name != "*" and not form.fullmatch(name):
            raise ConfigError(f"{flag}: {name!r} is not understood; write it as {example}, or * for any")


def take_known(section: type, values: dict[str, Any]) -> Any:
    """Builds one config section from the values it knows, removing them from ``values``."""
    return section(**{f.name: values.pop(f.name) for f in fields(section) if f.name in values})


def to_mapping(config: EngineConfig) -> dict[str, Any]:
    """The inverse of `EngineConfig.of`: a flat mapping, for sending a config to another process."""
    return {
        f.name: getattr(getattr(config, name), f.name)
        for name, section in EngineConfig.sections().items()
        for f in fields(section)
    }
