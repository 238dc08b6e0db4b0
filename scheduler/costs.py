"""What things cost here and now, measured: computing tokens again, and copying blocks between tiers.

A step's time is modelled as

    seconds = base + a · prefill tokens + b · decode tokens + c · (prefill query, key) pairs

and the four coefficients are fitted to the latest steps by least squares with exponential forgetting. The last term
is attention: late chunks of long prompts cost more than early ones. Because decodes of other sequences have their own
term, ``a`` and ``c`` are what one more prefill token costs beside the current load.
"""

from __future__ import annotations

import math

import numpy as np

from octavo.block_manager.tiers import Tier, TransferTiming
from octavo.scheduler.plan import StepPlan

# Steps after which an observation weighs 1/e.
_STEP_MEMORY = 256
# Prefill tokens that must have been seen before a prediction means anything.
_ENOUGH_TOKENS = 256
# The share of a new bandwidth measurement in the running mean.
_TRANSFER_SHARE = 0.2


def pairs(start: int, tokens: int) -> int:
    """Query-key pairs of causal attention for ``tokens`` queries from position ``start``."""
    return tokens * start + tokens * (tokens + 1) // 2


class CostModel:
    """Predicts seconds from what was observed."""

    def __init__(self) -> None:
        self._products = np.zeros((4, 4))
        self._targets = np.zeros(4)
        self._cold = True
        self._prefill_tokens = 0
        self._prefill_seconds = 0.0
        self._coefficients: np.ndarray | None = None  # to be fitted anew
        self._block_seconds: dict[tuple[Tier, Tier], float] = {}

    def observe_step(self, plan: StepPlan, seconds: float) -> None:
        """Takes in how long a step took, its transfers left out."""
        lens, starts = plan.query_lens[plan.num_decodes :], plan.starts[plan.num_decodes :]
        prefill = int(lens.sum())
        if prefill and self._cold:  # the first prompt finds caches and memory cold: nothing that will happen again
            self._cold = False
            return
        attended = int((lens.astype(np.int64) * starts + lens.astype(np.int64) * (lens + 1) // 2).sum())
        features = np.array([1.0, prefill, plan.num_decodes, attended])
        decay = 1.0 - 1.0 / _STEP_MEMORY
        self._products = self._products * decay + np.outer(features, features)
        self._targets = self._targets * decay + features * seconds
        self._coefficients = None
        if prefill:
            self._prefill_tokens += prefill
            self._prefill_seconds += seconds

    def observe_transfer(self, timing: TransferTiming) -> None:
        """Takes in how long copying some blocks took."""
        direction, seconds = (timing.source, timing.target), timing.seconds / timing.num_blocks
        known = self._block_seconds.get(direction, seconds)
        self._block_seconds[direction] = known + _TRANSFER_SHARE * (seconds - known)

    def compute_seconds(self, tokens: int, start: int = 0) -> float | None:
        """Predicted seconds that computing a sequence's tokens from position ``start`` adds; None if not known yet."""
        if self._prefill_tokens < _ENOUGH_TOKENS:
            return None
        coefficients = self._fitted()
        seconds = float(coefficients[1] * tokens + coefficients[3] * pairs(start, tokens))
        # A fit that says that prefill is free is wrong; then the mean has to do.
        return seconds if seconds > 0 else tokens * self._prefill_seconds / self._prefill_tokens

    def decode_seconds(self, num_sequences: int) -> float | None:
        """Predicted seconds of a step in which so many sequences compute one token each; None if not known yet."""
        if self._prefill_tokens < _ENOUGH_TOKENS:
            return None
        coefficients = self._fitted()
        return float(coefficients[0] + coefficients[2] * num_sequences) or None

    def tokens_within(self, seconds: float, num_sequences: int, start: int, most: int) -> int:
        """Prefill tokens from position ``start`` on, ``most`` at most, that fit beside so many sequences' decodes.

        They may take as long as the decodes in any case. Where those take most of the time, prompts that get what is
        left come one after the other, and each decodes nearly alone: that costs everybody more than longer steps.

        Args:
            seconds: What the step may take; as many tokens as there may be if costs are not known yet.
        """
        decodes, one = self.decode_seconds(num_sequences), self.compute_seconds(1, start)
        if decodes is None or not one:
            return most
        left, pair = max(seconds - decodes, decodes), float(self._fitted()[3])
        if left >= (self.compute_seconds(most, start) or 0.0):
            return most
        # The root of pair / 2 · tokens² + (one − pair / 2) · tokens = left, which nothing is subtracted for.
        linear = one - pair / 2
        return int(2 * left / (linear + math.sqrt(linear * linear + 2 * pair * left)))

    def block_seconds(self, source: Tier, target: Tier) -> float | None:
        """Predicted seconds to copy one block; None if it was never measured."""
        return self._block_seconds.get((source, target))

    def round_trip_seconds(self, tier: Tier) -> float | None:
        """Predicted seconds to copy one block from the device to a tier and back; None if not known."""
        out, back = self.block_seconds(Tier.DEVICE, tier), self.block_seconds(tier, Tier.DEVICE)
        return None if out is None or back is None else out + back

    def _fitted(self) -> np.ndarray:
        """The four coefficients, none negative."""
        if self._coefficients is None:
            scale = np.sqrt(np.diagonal(self._products)) + 1e-12
            # A little ridge on the scaled problem: what steps cannot tell apart stays at the mean per prefill token.
            mean = np.array([0.0, self._prefill_seconds / max(1, self._prefill_tokens), 0.0, 0.0])
            normal = self._products / np.outer(scale, scale) + 1e-6 * np.eye(4)
            target = (self._targets - self._products @ mean) / scale
            # What comes out negative is nothing, and then the others are fitted anew: they had made up for it.
            positive, coefficients = np.ones(4, dtype=np.bool_), np.zeros(4)
            while positive.any():
                rest = np.where(positive, 0.0, -mean * scale)
                rest[positive] = np.linalg.solve(normal[np.ix_(positive, positive)], (target - normal @ rest)[positive])
                coefficients = np.where(positive, mean + rest / scale, 0.0)
                if (coefficients >= 0).all():
                    break
                positive &= coefficients >= 0
            self._coefficients = np.maximum(coefficients, 0.0)
        return self._coefficients
