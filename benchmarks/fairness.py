"""What a tenant that floods the queue does to the others: 100,000 requests on the real scheduler, without a model.

    python benchmarks/fairness.py                      # the table
    python benchmarks/fairness.py --check              # and an exit status
    python benchmarks/fairness.py --requests 10000     # in seconds

Three tenants. "light" sends a short request now and then, "steady" sends a quarter of what the engine can do, and
"flood" always has a thousand requests waiting. Time is virtual: a step takes a fixed time, and more for each token, so
the table does not depend on the machine. The columns: seconds to the first token, the 50th and 99th percentile; and
the tenant's share of all service while the flood lasts, as `octavo.scheduler.tenants` counts it (an output token costs
two of a prompt). The policies other than plain "fair" get a fifth of the requests.

The bound. Before it is a waiting request's turn, each of the other n − 1 tenants gets at most

    2 · U = 2 · max(PROMPT_COST · longest prompt, OUTPUT_COST · tokens that the KV pool holds) / smallest weight

of service per unit of its weight: that is what `octavo.scheduler.tenants` states for any two tenants that wait, applied
to each of the others in turn. While the flood lasts the engine never idles, and gives out service at a rate that the
run measures; so service becomes time. With equal weights a request has its first token after

    2 · (n − 1) · U / rate     until it is its turn, and
    2 steps                    the one that is under way when it arrives, and its own; both full

`--check` verifies the bound in service and in time for every request of "light", not for a percentile; that two tenants
that both wait are at no step further apart than 2 · U; that at no step anybody holds more blocks than its ceiling or
fewer are available than floors promise.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.block_manager.manager import BlockManager
from octavo.config import SchedulerConfig, TenantConfig
from octavo.scheduler.plan import Sampled, StepPlan, StepResult
from octavo.scheduler.sampling import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.streams import split_stream, stream_of
from octavo.scheduler.tenants import OUTPUT_COST, PROMPT_COST, Tenants

BLOCK_SIZE = 16
NUM_BLOCKS = 512
MAX_NUM_SEQS = 64
MAX_MODEL_LEN = 256
VOCAB = 32_000

PROMPT_TOKENS = (20, 200)
OUTPUT_TOKENS = (5, 50)
BACKLOG = 1_000  # requests of the flood that wait at any time

# Seconds of a step: about those of a small model on a GPU.
STEP_SECONDS, PREFILL_SECONDS, DECODE_SECONDS = 5e-3, 2e-5, 5e-5


@dataclass(frozen=True)
class Source:
    """Who sends requests.

    Attributes:
        rate: Requests a second, at random times; infinite: as many as keep `BACKLOG` of them waiting.
        short: A quarter of the others' lengths.
    """

    name: str
    rate: float
    short: bool = False


LIGHT, STEADY, FLOOD = Source("light", 2.0, short=True), Source("steady", 45.0), Source("flood", float("inf"))


@dataclass(frozen=True)
class Scenario:
    """Tenants, and by which policy they share the engine."""

    name: str
    policy: str
    sources: tuple[Source, ...] = (LIGHT, STEADY, FLOOD)
    tenants: tuple[TenantConfig, ...] = tuple(TenantConfig(name=source.name) for source in (LIGHT, STEADY, FLOOD))

    @property
    def bound(self) -> float:
        """By how much two tenants' services per weight may differ while both wait: 2 · U."""
        weight = min(tenant.weight for tenant in self.tenants)
        return 2 * max(PROMPT_COST * PROMPT_TOKENS[1], OUTPUT_COST * NUM_BLOCKS * BLOCK_SIZE) / weight

    @property
    def most_before(self) -> float:
        """Service that others may get while one request waits for its turn."""
        return sum(tenant.weight for tenant in self.tenants[1:]) * self.bound


FCFS = Scenario("fcfs", "fcfs")
FAIR = Scenario("fair", "fair")
LIMITED = Scenario(
    "fair, with limits",
    "fair",
    tenants=(
        TenantConfig(name="light", floor=64),
        TenantConfig(name="steady"),
        TenantConfig(name="flood", ceiling=384),
    ),
)
QUIET = Scenario("fair, no flood", "fair", sources=(LIGHT, STEADY))
TWO_FLOODS = Scenario(
    "fair, two floods, weights 1 and 2",
    "fair",
    sources=(LIGHT, Source("steady", float("inf")), FLOOD),
    tenants=(TenantConfig(name="light"), TenantConfig(name="steady"), TenantConfig(name="flood", weight=2.0)),
)


@dataclass
class Waiting:
    """A request that has not got its first token.

    Attributes:
        others: Service that other tenants had had when it arrived.
    """

    tenant: int
    arrival: float
    prompt: int
    others: float


@dataclass
class Outcome:
    """What came of one scenario.

    Attributes:
        steps: In all.
        seconds: Of virtual time until the last request was sent. service: per tenant, until then.
        first_tokens: Per tenant, seconds from arrival to first token.
        most_before: The most service that others got while a request of "light" waited.
        most_apart: The largest difference of service per weight that two tenants had gathered while both waited.
        faults: Limits that did not hold, in words.
    """

    scenario: Scenario
    steps: int
    seconds: float
    service: dict[str, float]
    first_tokens: dict[str, list[float]]
    most_before: float
    most_apart: float
    faults: list[str]

    @property
    def rate(self) -> float:
        """Service per second."""
        return sum(self.service.values()) / self.seconds

    @property
    def bound_seconds(self) -> float:
        """By when a request of "light" must have its first token."""
        full_step = STEP_SECONDS + PREFILL_SECONDS * SchedulerConfig().max_num_batched_tokens
        return self.scenario.most_before / self.rate + 2 * (full_step + DECODE_SECONDS * MAX_NUM_SEQS)

    def percentile(self, tenant: str, percent: float) -> float:
        """Of the seconds to the first token."""
        return float(np.percentile(self.first_tokens[tenant], percent))

    def share(self, tenant: str) -> float:
        """Of all service."""
        return self.service[tenant] / sum(self.service.values())


class Rivals:
    """Pairs of tenants that both wait: what each of them has had since that began."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = np.array(weights)
        self._since: dict[tuple[int, int], float] = {}
        self.most_apart = 0.0

    def look(self, waiting: Sequence[int], service: npt.NDArray[np.float64]) -> None:
        """Takes in who waits, and what all have had so far."""
        scaled = service / self._weights
        for pair in itertools.combinations(range(len(service)), 2):
            if not (waiting[pair[0]] and waiting[pair[1]]):
                self._since.pop(pair, None)
                continue
            ahead = float(scaled[pair[0]] - scaled[pair[1]])
            self.most_apart = max(self.most_apart, abs(ahead - self._since.setdefault(pair, ahead)))


class Limits:
    """Watches floors and ceilings from outside: by the blocks in the tables.

    Attributes:
        faults: What did not hold, in words.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.faults: list[str] = []
        self._scheduler = scheduler
        self._holders = np.zeros(scheduler.manager.pool.num_blocks + 1, dtype=np.int8)

    def look(self) -> None:
        """Between planning a step and taking its tokens in, when blocks have been given out."""
        rows, manager = self._scheduler.state.running.rows, self._scheduler.manager
        configs, holders = self._scheduler.state.tenants.configs, self._holders
        holders.fill(len(configs))
        holders[manager.tables.ids[rows]] = self._scheduler.rows.tenant[rows, None]
        holders[0] = len(configs)  # the null block
        used, promised = np.bincount(holders, minlength=len(configs)).tolist(), 0
        for config, blocks in zip(configs, used, strict=False):
            promised += max(0, config.floor - blocks)
            if config.ceiling is not None and blocks > config.ceiling:
                self.faults.append(f"{config.name} holds {blocks} blocks, and may hold {config.ceiling}")
        if manager.pool.available < promised:
            self.faults.append(f"{manager.pool.available} blocks are available, and floors promise {promised}")


class Run:
    """One scenario on its way."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.submitted = 0
        self._random = random.Random(seed)
        self._tokens = np.random.default_rng(seed).integers(0, VOCAB, 1_000_003, dtype=np.int32)
        self._scheduler = _scheduler(scenario, lambda: self.now)
        self._waiting: dict[int, Waiting] = {}  # by key
        names = [source.name for source in scenario.sources]
        known = [tenant.name for tenant in scenario.tenants]
        self._tenant_of = [known.index(name) for name in names]
        self._next = [self._gap(source) for source in scenario.sources]
        self._queued = [0] * len(known)
        self._service = np.zeros(len(known))
        self._tenants = np.zeros(0, dtype=np.int8)  # by key: whose request
        self._first_tokens: dict[str, list[float]] = {name: [] for name in names}
        self._rivals = Rivals([tenant.weight for tenant in scenario.tenants])
        self._limits = Limits(self._scheduler)
        self._most_before = 0.0

    def until(self, *, requests: int | None = None, seconds: float = float("inf")) -> Outcome:
        """Sends so many requests and waits for their ends, or runs for so many seconds."""
        limit = requests if requests is not None else sys.maxsize
        self._tenants = np.zeros(min(limit, 1_000_000), dtype=np.int8)
        sent: tuple[float, list[float]] | None = None
        while self.now < seconds:
            self._submit(limit)
            if sent is None and self.submitted == limit:
                sent = self.now, self._service.tolist()
            plan = self._scheduler.schedule()
            if plan is not None:
                self._execute(plan)
            elif self.submitted < limit:
                self.now = max(self.now, min(self._next))
            else:
                break
        lasted, service = sent or (self.now, self._service.tolist())
        return Outcome(
            scenario=self.scenario,
            steps=self._scheduler.counters.steps,
            seconds=lasted,
            service=dict(zip((tenant.name for tenant in self.scenario.tenants), service, strict=True)),
            first_tokens=self._first_tokens,
            most_before=self._most_before,
            most_apart=self._rivals.most_apart,
            faults=self._limits.faults,
        )

    def _gap(self, source: Source) -> float:
        return self._random.expovariate(source.rate) if source.rate < float("inf") else 0.0

    def _submit(self, limit: int) -> None:
        for number, source in enumerate(self.scenario.sources):
            if source.rate < float("inf"):
                while self._next[number] <= self.now and self.submitted < limit:
                    self._add(source, self._tenant_of[number], self._next[number])
                    self._next[number] += self._gap(source)
            else:
                while self._queued[self._tenant_of[number]] < BACKLOG and self.submitted < limit:
                    self._add(source, self._tenant_of[number], self.now)

    def _add(self, source: Source, tenant: int, arrival: float) -> None:
        part = 4 if source.short else 1
        length = self._random.randint(PROMPT_TOKENS[0], PROMPT_TOKENS[1] // part)
        output = self._random.randint(OUTPUT_TOKENS[0], OUTPUT_TOKENS[1] // part)
        first = self._random.randrange(len(self._tokens) - length)
        prompt = self._tokens[first : first + length]
        sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        key = self.submitted
        self._scheduler.add(key, prompt, sampling, tenant=source.name)
        self._tenants[key] = tenant
        self._waiting[key] = Waiting(tenant, arrival, length, float(self._service.sum() - self._service[tenant]))
        self._queued[tenant] += 1
        self.submitted += 1

    def _execute(self, plan: StepPlan) -> None:
        self._limits.look()
        self.now += STEP_SECONDS + PREFILL_SECONDS * (plan.num_tokens - plan.num_decodes)
        self.now += DECODE_SECONDS * plan.num_decodes
        result = self._scheduler.update(plan, Sampled(np.zeros(len(plan.sample_rows), dtype=np.int32)))
        self._account(result)
        self._rivals.look(self._queued, self._service)

    def _account(self, result: StepResult) -> None:
        keys = result.streams // stream_of(1, 0)
        self._service += OUTPUT_COST * np.bincount(self._tenants[keys], minlength=len(self._service))
        for stream, hit, *_ in result.started:
            waited = self._waiting.pop(split_stream(stream)[0])
            name = self.scenario.tenants[waited.tenant].name
            self._first_tokens[name].append(self.now - waited.arrival)
            self._queued[waited.tenant] -= 1
            if waited.tenant == 0:
                others = float(self._service[1:].sum()) - waited.others
                self._most_before = max(self._most_before, others)
            self._service[waited.tenant] += PROMPT_COST * (waited.prompt - hit)


def _scheduler(scenario: Scenario, clock: Any) -> Scheduler:
    config = SchedulerConfig(
        max_num_seqs=MAX_NUM_SEQS, max_waiting=4 * BACKLOG, policy=scenario.policy, tenants=scenario.tenants
    )
    configs = Tenants(config.tenants).configs
    manager = BlockManager(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_rows=MAX_NUM_SEQS,
        max_blocks_per_row=MAX_MODEL_LEN // BLOCK_SIZE,
        prefix_caching=False,  # all prompts are different
        floors=[tenant.floor for tenant in configs],
        ceilings=[tenant.ceiling for tenant in configs],
        clock=clock,
    )
    return Scheduler(config, manager, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB, clock=clock)


def problems(outcome: Outcome) -> list[str]:
    """What was promised and did not hold, in words."""
    name, scenario = outcome.scenario.name, outcome.scenario
    found = [f"{name}: {fault}" for fault in outcome.faults[:3]]
    if scenario.policy != "fair":
        return found
    longest = max(outcome.first_tokens["light"], default=0.0)
    if longest > outcome.bound_seconds:
        found.append(
            f"{name}: light waited {longest:.2f} s for a first token, the bound is {outcome.bound_seconds:.2f}"
        )
    if outcome.most_before > scenario.most_before:
        found.append(f"{name}: others got {outcome.most_before:,.0f} before light, at most {scenario.most_before:,.0f}")
    # A ceiling keeps a tenant from its share on purpose.
    limited = any(tenant.ceiling is not None for tenant in scenario.tenants)
    if outcome.most_apart > scenario.bound and not limited:
        found.append(f"{name}: two who waited were {outcome.most_apart:,.0f} apart, at most {scenario.bound:,.0f}")
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per scenario and tenant."""
    lines = [["policy", "tenant", "requests", "TTFT p50", "p99", "service"]]
    lines += [_line(outcome, source.name) for outcome in outcomes for source in outcome.scenario.sources]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(_justify, line, widths, range(len(line)))) for line in lines)


def _line(outcome: Outcome, tenant: str) -> list[str]:
    p50, p99 = outcome.percentile(tenant, 50), outcome.percentile(tenant, 99)
    count, share = len(outcome.first_tokens[tenant]), outcome.share(tenant)
    return [outcome.scenario.name, tenant, f"{count:,}", f"{p50:.3f} s", f"{p99:.3f} s", f"{share:.1%}"]


def _justify(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)


def run(requests: int, seed: int = 0) -> list[Outcome]:
    """All scenarios. The one without a flood runs for a third of the time of the one with it."""
    few = max(3 * BACKLOG, requests // 5)
    fair = Run(FAIR, seed).until(requests=requests)
    return [
        Run(FCFS, seed).until(requests=few),
        fair,
        Run(LIMITED, seed).until(requests=few),
        Run(QUIET, seed).until(seconds=fair.seconds / 3),
        Run(TWO_FLOODS, seed).until(requests=few),
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    """The light tenant beside what is promised to it."""
    by_name = {outcome.scenario.name: outcome for outcome in outcomes}
    fair, quiet, both = by_name[FAIR.name], by_name[QUIET.name], by_name[TWO_FLOODS.name]
    bound = fair.scenario.most_before
    return "\n".join(
        [
            f"light, p99 to the first token: {quiet.percentile('light', 99):.3f} s without the flood, "
            f"{fair.percentile('light', 99):.3f} s with it; bound {fair.bound_seconds:.2f} s",
            f"  service to others while one of its requests waited: {fair.most_before:,.0f} at most, "
            f"bound {bound:,.0f}; the engine gives {fair.rate:,.0f} a second",
            f"two floods, service per weight: {both.most_apart:,.0f} apart at most, bound {both.scenario.bound:,.0f}",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; with ``--check`` returns 1 if a limit or a bound did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="requests under the fair policy")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and lengths")
    parser.add_argument("--check", action="store_true", help="fail if a limit or a bound did not hold")
    options = parser.parse_args(argv)
    if options.requests < BACKLOG:
        parser.error(f"--requests must be at least {BACKLOG}: so many of the flood's wait")
    began = time.monotonic()
    outcomes = run(options.requests, options.seed)
    print(table(outcomes))
    print()
    print(summary(outcomes))
    steps = sum(outcome.steps for outcome in outcomes)
    print(f"{steps:,} steps in {time.monotonic() - began:.0f} s")
    found = [problem for outcome in outcomes for problem in problems(outcome)] if options.check else []
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
