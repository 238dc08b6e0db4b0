"""Rates of this machine: that they are measured, not what they are."""

from __future__ import annotations

import torch

from octavo.engine import machine


def test_rates_are_measured(monkeypatch) -> None:
    monkeypatch.setattr(machine, "READ_BYTES", 2**20)
    rates = machine.measure(torch.device("cpu"))
    assert min(rates.read_bytes, rates.operations, rates.float32_operations) > 0


def test_slow_products_are_small(monkeypatch) -> None:
    now = [0.0]

    def work(*operands: object) -> None:
        now[0] += 1.0

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.Tensor, "matmul", work)
    assert machine._operations(torch.float32, torch.device("cpu")) == 2 * machine._FIRST_SIDE**3
