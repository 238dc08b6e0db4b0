"""Where steps' time goes."""

from __future__ import annotations

import pytest
from engines import plan_of

from octavo.block_manager.tiers import Tier, TransferTiming
from octavo.engine import meter
from octavo.engine.messages import HistogramCounts
from octavo.engine.meter import Distribution, StepMeter


def test_a_bound_counts_what_is_equal_to_it() -> None:
    distribution = Distribution([1.0, 2.0])
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        distribution.add(value)
    assert distribution.counts() == HistogramCounts([1.0, 2.0], [2, 2, 1], 12.0)


def test_a_phase_counts_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.5, 10.0, 10.25])
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(times))
    measured = StepMeter()
    with measured.phase("schedule"):
        pass
    with pytest.raises(ValueError), measured.phase("execute"):  # noqa: PT011
        raise ValueError
    assert measured.phases == {"schedule": 1.5, "transfer": 0.0, "execute": 0.25, "update": 0.0}
    assert measured.seconds == 1.75


def test_steps_and_copies_are_counted() -> None:
    measured = StepMeter()
    measured.step(plan_of([(0, 30)], decodes=2), 0.004)
    for blocks, seconds in ((3, 0.5), (1, 0.25)):
        measured.transfers([TransferTiming(Tier.DEVICE, Tier.HOST, blocks, seconds)])
    found = measured.histograms()
    assert [found[name].total for name in ("step_seconds", "step_tokens", "step_sequences")] == [0.004, 32, 3]
    assert [sum(counts.counts) for counts in found.values()] == [1, 1, 1]
    assert measured.copies == {(Tier.DEVICE, Tier.HOST): 0.75}
