"""EngineCore: the step loop's body. Schedule, execute, update."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo.block_manager.manager import BlockManager
from octavo.block_manager.pins import Pin
from octavo.block_manager.tiers import Tiers, TransferOutcome
from octavo.block_manager.windowed import WindowedBlockManager
from octavo.config import EngineConfig
from octavo.engine.batch import InputBuffers
from octavo.engine.device import choose_device, device_name
from octavo.engine.disk_store import DiskStore
from octavo.engine.grammar_compiler import GrammarTokenizer
from octavo.engine.grammars import Grammars
from octavo.engine.kv_cache import KVCache
from octavo.engine.live import LiveReader
from octavo.engine.memory import PoolPlan, free_host_memory, numbers_in_words, plan_pool, report
from octavo.engine.messages import AddRequest, EngineInfo, EngineStats
from octavo.engine.meter import StepMeter
from octavo.engine.runner import ModelRunner
from octavo.engine.sampler import Sampler
from octavo.engine.stats import snapshot
from octavo.errors import ConfigError
from octavo.kernels.attention import Backend, select_backend
from octavo.models.decoder import Decoder
from octavo.models.loader import load_model
from octavo.models.shape import FITTING, ModelShape
from octavo.scheduler.plan import StepPlan, StepResult
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.streams import split_stream
from octavo.scheduler.tenants import Tenants

log = logging.getLogger(__name__)


class EngineCore:
    """A model, its KV pool and its scheduler.

    Not thread-safe: one thread adds, aborts and steps.

    Attributes:
        info: What is being served.
        scheduler: Plans the steps. runner: executes them. grammars: what requests have to follow.
        live: What the live map shows.
    """

    def __init__(self, info: EngineInfo, scheduler: Scheduler, runner: ModelRunner, grammars: Grammars) -> None:
        self.info = info
        self.scheduler = scheduler
        self.runner = runner
        self.grammars = grammars
        self.live = LiveReader(scheduler)
        self._meter = StepMeter()

    @classmethod
    def load(
        cls, config: EngineConfig, folder: Path, *, name: str, progress: Callable[[str], None] = lambda text: None
    ) -> EngineCore:
        """Loads a model folder.

        Args:
            folder: A prepared model folder; see `octavo.engine.prepare`.
            name: What to call the model.
            progress: Told what is being done.

        Raises:
            SetupError: The weights, the options or the memory do not do.
        """
        shape = ModelShape.read(folder, trust_remote_code=config.model.trust_remote_code)
        device = choose_device(config.execution.device)
        threads = _set_threads(config.execution.threads)
        dtype = shape.served_dtype(config.model.dtype, device.type)
        backend = select_backend(device, config.execution.attention_backend)
        if config.cache.kv_cache_dtype == "int8" and not backend.reads_int8:
            raise ConfigError(f"--kv-cache-dtype int8: the {backend.name} kernels cannot read it; those for CPUs can")
        kind = numbers_in_words(config, dtype)
        progress(f"loading {name} ({shape.num_parameters / 1e6:,.0f} M parameters, {kind}) on {device.type}")
        decoder = load_model(
            folder,
            dtype=dtype,
            device=device,
            max_model_len=config.model.max_model_len,
            load_format=config.model.load_format,
            seed=config.model.seed,
            attention_backend=config.execution.attention_backend,
            trust_remote_code=config.model.trust_remote_code,
            quantization=config.model.quantization,
        )
        if config.execution.deterministic and not decoder.is_batch_invariant:
            raise ConfigError(
                f"--deterministic: the kernels for {dtype} on this {device.type} give results that depend on a "
                "token's company; those that do not run on CPUs, with --attention-backend auto or cpu, for models with "
                f"{FITTING}"
            )
        free = _free_memory(device)
        pool = plan_pool(config, shape, free=free, free_host=free_host_memory(), device=device.type)
        scheduler = _build_scheduler(config, shape, pool)
        grammars = Grammars(scheduler.rows, GrammarTokenizer(folder, shape.vocab_size, shape.eos_token_ids))
        runner = _build_runner(config, pool, scheduler, decoder, backend, grammars)
        progress("preparing kernels (compiled on first use)")
        runner.warm_up()
        for timing in runner.measure_transfers():
            scheduler.state.costs.observe_transfer(timing)
        where = f"{device_name(device)} · {threads} threads · {backend.name} attention"
        info = EngineInfo(
            model_name=name,
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            max_model_len=pool.max_model_len,
            eos_token_ids=list(shape.eos_token_ids),
            block_size=config.cache.block_size,
            num_blocks=pool.num_blocks,
            block_bytes=pool.block_bytes,
            max_num_seqs=config.scheduler.max_num_seqs,
            device=device.type,
            dtype=dtype,
            attention_backend=backend.name,
            report=report(pool, config, shape, name=name, where=where, dtype=dtype, weight_bytes=decoder.weight_bytes),
        )
        return cls(info, scheduler, runner, grammars)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_work

    @property
    def has_room(self) -> bool:
        """Whether `add` would not raise QueueFullError now."""
        return self.scheduler.num_waiting < self.scheduler.config.max_waiting

    def add(self, request: AddRequest) -> None:
        """Queues a request under ``request.key``.

        Raises:
            ClientError: It is malformed or can never fit.
            QueueFullError: Too many wait already.
        """
        if request.sampling.grammar is not None:
            self.grammars.check(request.sampling.grammar)
        self.scheduler.add(
            request.key,
            np.frombuffer(request.prompt, dtype=np.int32),
            request.sampling,
            request.cache_salt,
            tenant=request.tenant,
            priority=request.priority,
            pin_ttl=request.pin_ttl,
        )

    def abort(self, keys: Iterable[int]) -> None:
        """Ends requests and frees their blocks; unknown keys are counted."""
        for key in keys:
            self.scheduler.abort(key)

    def end_sequence(self, key: int, index: int) -> None:
        """Ends one of a request's sequences, because its reader has seen enough; the others go on."""
        self.scheduler.end_sequence(key, index)

    def step(self) -> StepResult:
        """Schedules, executes and updates. A step that fails fails its culprit, not the engine.

        Raises:
            torch.AcceleratorError: The GPU's context is lost, and every later step would fail as well.
        """
        before = self._meter.seconds
        with self._meter.phase("schedule"):
            plan = self.scheduler.schedule()
        if plan is None:
            return StepResult()
        try:
            return self._execute(plan)
        finally:
            self._meter.step(plan, self._meter.seconds - before)

    def _execute(self, plan: StepPlan) -> StepResult:
        with self._meter.phase("transfer"):
            outcome = self._transfer(plan)
        self._meter.transfers(outcome.timings)
        left = self.scheduler.lose(plan, outcome.lost) if outcome.lost else plan
        if left is None:
            return StepResult()
        started = time.monotonic()
        try:
            with self._meter.phase("execute"):
                sampled = self.runner.execute(left)
        except Exception as error:
            if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
                raise
            log.exception("step %d failed with %d sequences", plan.number, len(left.rows))
            return self.scheduler.fail(left, f"{type(error).__name__}: {error}")
        except BaseException:  # Ctrl-C: what the step was to compute must not be taken for computed
            self.scheduler.fail(left, "interrupted")
            raise
        with self._meter.phase("update"):
            self.scheduler.observe(left, time.monotonic() - started, outcome.timings)
            result = self.scheduler.update(left, sampled)
            return self._give_up_on_grammars(result) if self.grammars.failures else result

    def _give_up_on_grammars(self, result: StepResult) -> StepResult:
        """Ends the requests whose grammars cannot go on: what was sampled for them in this step means nothing."""
        failures = {split_stream(stream)[0]: error for stream, error in self.grammars.take_failures().items()}
        ended = [self.scheduler.give_up(key, failures[key]) for key in failures.keys() & self.scheduler.state.requests]
        return replace(result, finished=(*result.finished, *ended))

    def _transfer(self, plan: StepPlan) -> TransferOutcome:
        """Runs the copies between tiers; what fails unexpectedly counts as lost, and the step goes on without it."""
        if not plan.transfers:
            return TransferOutcome()
        try:
            return self.runner.transfer(plan.transfers)
        except Exception as error:
            if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
                raise
            log.exception("the transfers of step %d failed", plan.number)
            return TransferOutcome(lost=plan.transfers)
        except BaseException:
            if (left := self.scheduler.lose(plan, plan.transfers)) is not None:
                self.scheduler.fail(left, "interrupted")
            raise

    def pin(self, tokens: Sequence[int], ttl: float, *, tenant: str = "", cache_salt: str = "") -> Pin | None:
        """Keeps a prefix resident; see `Scheduler.pin`. None if it is not cached: add it with ``pin_ttl`` then."""
        return self.scheduler.pin(tokens, ttl, tenant=tenant, salt=cache_salt)

    def stats(self) -> EngineStats:
        """A snapshot of the state."""
        return snapshot(self.scheduler, self._meter, self.info.block_bytes)

    def check_integrity(self) -> list[str]:
        """Every invariant that does not hold, in words."""
        return self.scheduler.check_integrity()


def _build_scheduler(config: EngineConfig, shape: ModelShape, pool: PoolPlan) -> Scheduler:
    tenants = Tenants(config.scheduler.tenants).configs
    options: dict[str, Any] = {
        "num_blocks": pool.num_blocks,
        "block_size": config.cache.block_size,
        "num_rows": config.scheduler.max_num_seqs,
        "max_blocks_per_row": -(-pool.max_model_len // config.cache.block_size),
        "prefix_caching": config.cache.prefix_caching,
        "floors": [tenant.floor for tenant in tenants],
        "ceilings": [tenant.ceiling for tenant in tenants],
        "pin_budget": int(pool.num_blocks * config.scheduler.pin_ratio),
    }
    if pool.groups.num_windowed:
        chunk = config.scheduler.max_num_batched_tokens
        manager: BlockManager = WindowedBlockManager(groups=pool.groups, max_chunk=chunk, **options)
    else:
        manager = BlockManager(tiers=Tiers(pool.num_host_blocks, pool.num_disk_blocks), **options)
    return Scheduler(
        config.scheduler,
        manager,
        max_model_len=pool.max_model_len,
        vocab_size=shape.vocab_size,
        eos_token_ids=shape.eos_token_ids,
        seed=config.model.seed,
    )


def _build_runner(
    config: EngineConfig,
    pool: PoolPlan,
    scheduler: Scheduler,
    decoder: Decoder,
    backend: Backend,
    grammars: Grammars,
) -> ModelRunner:
    shape, folder = decoder.shape, config.cache.swap_dir
    int8 = config.cache.kv_cache_dtype == "int8"
    kv_cache = KVCache(
        groups=pool.groups,
        num_blocks=scheduler.manager.pool.num_blocks,
        num_kv_heads=shape.num_kv_heads,
        block_size=config.cache.block_size,
        head_dim=shape.head_dim,
        dtype=torch.int8 if int8 else decoder.dtype,
        device=decoder.device,
        backend=backend,
        num_host_blocks=pool.num_host_blocks,
        disk=DiskStore(Path(folder), pool.num_disk_blocks, pool.block_bytes) if folder else None,
    )
    inputs = InputBuffers(
        scheduler.rows,
        scheduler.manager,
        max_num_tokens=config.scheduler.max_num_batched_tokens,
        max_num_seqs=config.scheduler.max_num_seqs,
        device=decoder.device,
    )
    sampler = Sampler(scheduler.rows, list(shape.eos_token_ids))
    return ModelRunner(decoder, kv_cache, inputs, sampler, scheduler.rows, grammars)


def _set_threads(requested: int | None) -> int:
    threads = requested or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads


def _free_memory(device: torch.device) -> int:
    return free_host_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
