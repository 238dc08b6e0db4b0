"""What the clients ask for, and what each of them has to be told according to the oracle."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oracle import fingerprint, next_token
from tiny_tokenizer import TEXT

from octavo.engine.tokenizer import Tokenizer
from octavo.scheduler.rows import SIBLING_SEED_STEP
from simulation.shape import TENANTS, Shape

REQUESTS = (10, 24)
SECONDS = (0.5, 2.0, 8.0)  # in which they arrive

_WORDS = " ".join(TEXT).split()
_STOPS = ("e", " t", "a", "\n", "the", "ing")
_COMPLETIONS_DEFAULT = 16
_LARGE = "x" * 9_000  # bodies above `octavo.server.limits.INLINE_BYTES` are parsed off the event loop


def origin(tenant: str, salt: str) -> int:
    """What the oracle's history begins with for a tenant's requests with this salt."""
    return zlib.crc32(f"{tenant}|{salt}".encode())


@dataclass(frozen=True)
class Choice:
    """One sequence as its client must see it.

    Attributes:
        tokens: Its own, up to the one that ended it.
    """

    text: str
    reason: str
    tokens: list[int]


@dataclass(frozen=True)
class Demand:
    """One HTTP request.

    Attributes:
        at: Seconds from the start. patience: times that it is sent again if it is refused for now.
        prompts: As token ids.
    """

    at: float
    path: str
    body: dict[str, Any]
    tenant: str
    prompts: list[list[int]]
    patience: int

    @property
    def n(self) -> int:
        """Sequences per prompt."""
        return int(self.body.get("n", 1))

    @property
    def stream(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.body.get("stream"))


class Workload:
    """One seed's requests.

    Args:
        limits: Tenant → the most tokens, prompt and output, that a request of its may have in the pool.
    """

    def __init__(self, rng: random.Random, shape: Shape, tokenizer: Tokenizer, limits: dict[str, int]) -> None:
        self._rng = rng
        self._shape = shape
        self._tokenizer = tokenizer
        self._limits = limits
        self._prefixes = [self._words(rng.randint(3, 25)) for _ in range(2)]
        self.seconds = rng.choice(SECONDS)
        self.demands = self._demands()

    def storm(self, at: float) -> list[Demand]:
        """Many requests at once."""
        return [self._demand(at) for _ in range(8)]

    def refusal(self, demand: Demand) -> str | None:
        """Why a demand can never be met, if so: what it is too long for."""
        for prompt in demand.prompts:
            total = len(prompt) + (demand.body.get("max_tokens") or self._default(demand, prompt))
            if total > self._shape.max_model_len:
                return "window"
            if total > self._limits[demand.tenant]:
                return "pool"
        return None

    def choices(self, demand: Demand) -> list[Choice]:
        """What must come out."""
        return [self._choice(demand, prompt, index) for prompt in demand.prompts for index in range(demand.n)]

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────

    def _demands(self) -> list[Demand]:
        rng, demands, at = self._rng, list[Demand](), 0.0
        count = rng.randint(*REQUESTS)
        while len(demands) < count:
            at += rng.expovariate(count / self.seconds)
            for _ in range(rng.choice([1, 1, 1, 4])):
                demands.append(self._again(demands, at) if demands and rng.random() < 0.1 else self._demand(at))
        return demands

    def _again(self, demands: Sequence[Demand], at: float) -> Demand:
        """The very same as an earlier one: all of its blocks may be shared."""
        earlier = self._rng.choice(demands[-4:])
        return Demand(at, earlier.path, earlier.body, earlier.tenant, earlier.prompts, 0)

    def _demand(self, at: float) -> Demand:
        rng = self._rng
        path, tenant = rng.choice(["/v1/completions"] * 3 + ["/v1/chat/completions"]), rng.choice(TENANTS)
        body: dict[str, Any] = {
            "seed": rng.randrange(4),
            "max_tokens": rng.randint(1, 40),
            "n": rng.choice([1, 1, 1, 2, 3]),
            "stream": rng.random() < 0.75,
            "priority": rng.choice([0, 0, 1, 5]),
            "cache_salt": f"{tenant}|{rng.choice(['', '', 'b'])}",
            "ignore_eos": rng.random() < 0.5,
        }
        if rng.random() < 0.3:
            body["stop"] = rng.sample(_STOPS, rng.randint(1, 3))
            body["include_stop_str_in_output"] = rng.random() < 0.3
        elif rng.random() < 0.3:
            body["stop_token_ids"] = rng.sample(range(3, self._shape.vocab_size), 30)
            body["min_tokens"] = rng.randint(0, body["max_tokens"])
        if rng.random() < 0.1:
            del body["max_tokens"]
            body.pop("min_tokens", None)
        if rng.random() < 0.5:
            body["return_token_ids"] = True
        if body["stream"] and rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        if rng.random() < 0.05:
            body["metadata"] = {"padding": _LARGE}
        prompts = self._chat(body) if "chat" in path else self._prompts(body)
        return Demand(at, path, body, tenant, prompts, rng.choice([0, 0, 2]))

    def _prompts(self, body: dict[str, Any]) -> list[list[int]]:
        rng = self._rng
        texts = [self._text() for _ in range(rng.choice([1, 1, 1, 2]))]
        ids = [self._tokenizer.encode(text) for text in texts]
        body["prompt"] = rng.choice([texts, ids])
        return ids

    def _chat(self, body: dict[str, Any]) -> list[list[int]]:
        body["messages"] = [{"role": "user", "content": self._text()[:60]}]
        return [self._tokenizer.encode_chat(body["messages"])]

    def _text(self) -> str:
        rng = self._rng
        prefix = rng.choice([*self._prefixes, ""])
        return prefix[: rng.choice([len(prefix), len(prefix) // 2])] + self._words(rng.choice([1, 2, 3, 4, 4, 25]))

    def _words(self, count: int) -> str:
        return "".join(f" {self._rng.choice(_WORDS)}" for _ in range(count))

    # ── answers ───────────────────────────────────────────────────────────────────────────────────────────

    def _default(self, demand: Demand, prompt: list[int]) -> int:
        """Output tokens of a request that names no limit, at least 1."""
        if "chat" in demand.path:
            return max(1, self._limits[demand.tenant] - len(prompt))
        room = self._shape.max_model_len - max(map(len, demand.prompts))
        return max(1, min(_COMPLETIONS_DEFAULT, room))

    def _choice(self, demand: Demand, prompt: list[int], index: int) -> Choice:
        body = demand.body
        limit = body.get("max_tokens") or self._default(demand, prompt)
        stops = set(body.get("stop_token_ids", ())) | (set() if body["ignore_eos"] else set(self._shape.eos))
        history = origin(*body["cache_salt"].split("|"))
        for token in prompt:
            history = fingerprint(history, token)
        tokens = self._tokens(history, body["seed"], index, limit, stops, body.get("min_tokens", 0))
        stopped = len(tokens) > body.get("min_tokens", 0) and tokens[-1] in stops
        keep = body.get("include_stop_str_in_output", False)
        said = tokens[:-1] if stopped and not keep else tokens
        text = self._tokenizer.decode(said)
        cut = _first_stop(text, body.get("stop", ()), keep)
        if cut is None:
            return Choice(text, "stop" if stopped else "length", tokens)
        taken = next(k for k in range(1, len(said) + 1) if _first_stop(self._tokenizer.decode(said[:k]), body["stop"]))
        return Choice(cut, "stop", said[:taken])

    def _tokens(self, history: int, seed: int, index: int, limit: int, stops: set[int], at_least: int) -> list[int]:
        """The oracle's output after a prompt up to its end, with the token that ended it."""
        output = list[int]()
        own = (seed + index * SIBLING_SEED_STEP) % 2**64 % 2**31
        while len(output) < limit and not (len(output) > at_least and output[-1] in stops):
            output.append(next_token(history, own, self._shape.vocab_size))
            history = fingerprint(history, output[-1])
        return output


def _first_stop(text: str, stops: Sequence[str], keep: bool = True) -> str | None:
    """The text up to the stop string that is complete first, of several the longest; None if there is none."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if keep else end - len(stop)]
    return None
