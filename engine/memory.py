"""Sizes the KV pool from what is free, and explains the arithmetic. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from octavo.block_manager.groups import Footprint, LayerGroups
from octavo.config import KV_SCALE_BYTES, EngineConfig
from octavo.errors import ConfigError, MemoryTooSmallError
from octavo.models.shape import SERVED_DTYPES, ModelShape
from octavo.scheduler.tenants import Tenants

# What a GPU's host tier takes when nobody says otherwise: so much, and no larger share of the free host memory.
_DEFAULT_SWAP_SPACE = 4 * 2**30
_DEFAULT_SWAP_RATIO = 0.25

# The share of free memory that the pool takes when nobody says otherwise. A GPU is there for nothing else; a
# computer's memory is also for its other programs.
_DEFAULT_RATIO = {"cuda": 0.9, "cpu": 0.5}

_REPORTED_LENGTHS = (512, 2048, 8192)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """How large the KV pool is, and why.

    Attributes:
        groups: Which layers share a block.
        block_bytes: K and V of one block in all layers of a group. num_blocks: blocks that can be owned.
        num_host_blocks, num_disk_blocks: Blocks of the tiers below the device; 0 for no such tier.
        max_model_len: The longest sequence that is served.
        why: The arithmetic behind ``num_blocks``, in words.
    """

    groups: LayerGroups
    block_bytes: int
    num_blocks: int
    num_host_blocks: int
    num_disk_blocks: int
    max_model_len: int
    why: str


def free_host_memory() -> int:
    """Bytes that this process could still allocate: what the kernel calls available, within any cgroup limit."""
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return available
    if limit == "max":
        return available
    # Pages of files, such as weights just read, are given back when somebody needs the memory.
    reclaimable = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return min(available, max(0, int(limit) - used + reclaimable))


def plan_pool(config: EngineConfig, shape: ModelShape, *, free: int, free_host: int, device: str) -> PoolPlan:
    """Decides the number of KV blocks in each tier, and the longest sequence.

    Args:
        free: Bytes that are free on the device once the weights are loaded.
        free_host: The same of host memory; on a CPU the pool comes out of it too.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: ``--max-model-len`` is beyond what the model was made for, or the scheduler's options ask for
            more than these blocks allow.
        MemoryTooSmallError: The pool or a tier does not fit, or is smaller than one sequence or block; names what fits.
    """
    size, wanted = config.cache.block_size, config.model.max_model_len
    groups = LayerGroups.of(shape.windows, wanted or shape.max_position_embeddings)
    width = SERVED_DTYPES[shape.served_dtype(config.model.dtype, device)]
    row_bytes = config.cache.row_bytes(shape.head_dim, width)
    block_bytes = size * groups.layers_per_block * shape.kv_bytes_per_token(row_bytes) // shape.num_layers
    if wanted is not None and wanted > shape.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {wanted} is more than the {shape.max_position_embeddings} positions "
            "this model was made for"
        )
    footprint = Footprint(groups, size, config.scheduler.max_num_batched_tokens)
    num_blocks, why = _num_blocks(config, shape, free, device, block_bytes, footprint)
    # The last token of a sequence is returned and never computed, so it needs no slot.
    largest = footprint.longest(num_blocks) + 1
    if wanted is not None and wanted > largest:
        raise MemoryTooSmallError(
            f"--max-model-len {wanted} does not fit: {why}, which hold sequences of at most {largest} tokens; "
            f"lower it to {largest}, or give the pool more memory (--kv-cache-memory, --num-blocks)"
        )
    if device == "cpu":
        free_host -= num_blocks * block_bytes
    plan = PoolPlan(
        groups=groups,
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        num_host_blocks=_swap_space(config, groups, free_host, device, block_bytes) // block_bytes,
        num_disk_blocks=_swap_disk(config, groups, block_bytes) // block_bytes,
        max_model_len=wanted or min(shape.max_position_embeddings, largest),
        why=why,
    )
    _check_policies(config, plan)
    return plan


def _check_policies(config: EngineConfig, plan: PoolPlan) -> None:
    """Refuses what the scheduler could not do with these blocks."""
    if config.scheduler.preemption == "swap" and not plan.num_host_blocks and not plan.num_disk_blocks:
        raise ConfigError("--preemption swap needs a place to go to: give --swap-space, or --swap-dir and --swap-disk")
    floors = {tenant.name: tenant.floor for tenant in config.scheduler.tenants if tenant.floor}
    total = sum(floors.values())
    if total > plan.num_blocks:
        told = ", ".join(f"{name} {floor}" for name, floor in floors.items())
        raise ConfigError(f"--tenants: the floors ({told}) add up to {total} of {plan.num_blocks} blocks")
    least = len(plan.groups.members)
    for tenant in Tenants(config.scheduler.tenants).configs:
        if plan.num_blocks - total + tenant.floor < least:
            raise ConfigError(f"--tenants: the others' floors leave no block of {plan.num_blocks} to {tenant.name!r}")
        if tenant.ceiling is not None and tenant.ceiling < least:
            raise ConfigError(
                f"--tenants: {tenant.name!r} has a ceiling of {tenant.ceiling} blocks, and one token takes {least}, "
                "one for each group of layers"
            )


def _swap_space(config: EngineConfig, groups: LayerGroups, free_host: int, device: str, block_bytes: int) -> int:
    wanted = config.cache.swap_space
    if groups.num_windowed:
        _refuse_swap("--swap-space", wanted or 0, groups)
        return 0
    if wanted is None:
        return 0 if device == "cpu" else min(_DEFAULT_SWAP_SPACE, int(max(0, free_host) * _DEFAULT_SWAP_RATIO))
    if 0 < wanted < block_bytes:
        raise MemoryTooSmallError(f"--swap-space {wanted} is less than one KV block of {block_bytes:,} bytes")
    if wanted > free_host:
        fitting = max(0, free_host) // block_bytes
        raise MemoryTooSmallError(
            f"--swap-space {_gib(wanted)} does not fit: {_gib(max(0, free_host))} of host memory are free"
            f"{' beside the KV pool' if device == 'cpu' else ''}; "
            f"at most {fitting} blocks fit ({fitting * block_bytes} bytes)"
        )
    return wanted


def _refuse_swap(option: str, wanted: int, groups: LayerGroups) -> None:
    if wanted:
        raise ConfigError(
            f"{option} {wanted}: blocks of a model with sliding-window layers (window {groups.window:,}) cannot be "
            "swapped yet; leave it out, and sequences that give way are recomputed"
        )


def _swap_disk(config: EngineConfig, groups: LayerGroups, block_bytes: int) -> int:
    wanted = config.cache.swap_disk
    if groups.num_windowed:
        _refuse_swap("--swap-disk", wanted, groups)
    if 0 < wanted < block_bytes:
        raise MemoryTooSmallError(f"--swap-disk {wanted} is less than one KV block of {block_bytes:,} bytes")
    return wanted


def _num_blocks(
    config: EngineConfig, shape: ModelShape, free: int, device: str, block_bytes: int, footprint: Footprint
) -> tuple[int, str]:
    cache, size = config.cache, config.cache.block_size
    if cache.num_blocks is not None or cache.memory is not None:
        count = cache.num_blocks if cache.num_blocks is not None else (cache.memory or 0) // block_bytes
        told = f"--num-blocks {count}" if cache.num_blocks else f"--kv-cache-memory {_gib(cache.memory or 0)}"
        if count * block_bytes > free:
            raise MemoryTooSmallError(
                f"{told} needs {_gib(count * block_bytes)} and {_gib(free)} are free; "
                f"at most {free // block_bytes} blocks fit"
            )
        if count < 1:
            raise MemoryTooSmallError(f"{told} is less than one KV block of {block_bytes:,} bytes")
        return count, f"{told} makes {count:,} blocks of {size} tokens"
    ratio = cache.memory_ratio if cache.memory_ratio is not None else _DEFAULT_RATIO[device]
    count = int(free * ratio) // block_bytes
    if count < 1:
        raise MemoryTooSmallError(f"{ratio:.0%} of {_gib(free)} free is less than one KV block ({block_bytes:,} B)")
    longest = config.model.max_model_len or shape.max_position_embeddings
    useful = config.scheduler.max_num_seqs * footprint.most_blocks(longest)
    if count > useful:
        return useful, f"--max-num-seqs {config.scheduler.max_num_seqs} × {longest:,} tokens can use {useful:,} blocks"
    return count, f"{ratio:.0%} of {_gib(free)} free makes {count:,} blocks of {size} tokens"


def numbers_in_words(config: EngineConfig, dtype: str) -> str:
    """What a model's activations and weights are kept in."""
    return dtype if config.model.quantization == "none" else f"{dtype}, weights in {config.model.quantization}"


def report(
    plan: PoolPlan, config: EngineConfig, shape: ModelShape, *, name: str, where: str, dtype: str, weight_bytes: int
) -> list[str]:
    """The start-up report: weights, bytes per block, number of blocks, tokens and concurrency.

    Args:
        dtype: What ``--dtype`` came to mean. weight_bytes: what the model's weights take, as they were loaded.
    """
    size = config.cache.block_size
    row = f"{shape.head_dim} × {SERVED_DTYPES[dtype]} B"
    if config.cache.kv_cache_dtype == "int8":
        row = f"({shape.head_dim} × 1 B + a scale of {KV_SCALE_BYTES} B)"
    footprint = Footprint(plan.groups, size, config.scheduler.max_num_batched_tokens)
    lengths = sorted({min(length, plan.max_model_len) for length in _REPORTED_LENGTHS})
    tiers = _tiers(plan, config)
    concurrency = " · ".join(f"{plan.num_blocks // footprint.most_blocks(n):,} of {n:,} tokens" for n in lengths)
    return [
        f"model        {name} · {shape.num_parameters / 1e6:,.1f} M parameters ({numbers_in_words(config, dtype)}) · "
        f"{_gib(weight_bytes)}",
        f"runs on      {where}",
        f"KV block     {size} tokens × {plan.groups.layers_per_block} layers × 2 (K, V) × {shape.num_kv_heads} heads × "
        f"{row} = {plan.block_bytes:,} B",
        *_windows(plan.groups),
        f"KV pool      {plan.why} = {_gib(plan.num_blocks * plan.block_bytes)}, {_tokens(plan, size)}",
        *([f"KV tiers     {tiers}"] if tiers else []),
        f"concurrency  {concurrency} (at most {config.scheduler.max_num_seqs} run at once)",
        f"longest      {plan.max_model_len:,} tokens, prompt + output",
    ]


def _windows(groups: LayerGroups) -> list[str]:
    """What a model's windows mean for its blocks; nothing if there are none."""
    if not groups.num_windowed:
        return []
    full = sum(map(len, groups.members[: groups.num_full]))
    windowed = sum(map(len, groups.members[groups.num_full :]))
    return [
        f"windows      {windowed} layers see {groups.window:,} tokens: {groups.num_windowed} blocks for each "
        f"block_size tokens of the window, {groups.num_full} for those of the whole sequence ({full} layers)"
    ]


def _tokens(plan: PoolPlan, block_size: int) -> str:
    """How many tokens the pool holds, in words."""
    tokens = plan.num_blocks // len(plan.groups.members) * block_size
    return f"{tokens:,} tokens{' or more, the longer the sequences' if plan.groups.num_windowed else ''}"


def _tiers(plan: PoolPlan, config: EngineConfig) -> str:
    """The tiers below the device, in words; empty if there are none."""
    tiers = [("host memory", plan.num_host_blocks), (f"disk in {config.cache.swap_dir}", plan.num_disk_blocks)]
    return " · ".join(f"{count:,} blocks ({_gib(count * plan.block_bytes)}) {where}" for where, count in tiers if count)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
