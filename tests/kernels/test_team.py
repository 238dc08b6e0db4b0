"""Threads that compute together: nobody runs ahead, and whoever never comes is done without."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import cfunc, njit, types

from octavo.kernels.cpu.team import WORDS, barrier, caller, draw, join, share
from octavo.kernels.cpu.tiles import array_at

STAGES = 2_000


@njit(nogil=True)
def count_stages(team, wanted, done, seen, stages):
    """Each stage: note that this thread is in it, wait, look at the others, wait. Returns rank, size and mistakes."""
    rank, size = join(team, wanted)
    if rank < 0:
        return rank, size, 0
    mistakes = 0
    for stage in range(1, stages + 1):
        done[rank * 8] = stage
        barrier(team, size)
        for other in range(size):
            mistakes += done[other * 8] != stage
        seen[rank * 8] = stage
        barrier(team, size)
    return rank, size, mistakes


def together(num_threads: int, wanted: int, stages: int = STAGES) -> list[tuple[int, int, int]]:
    team, done, seen = np.zeros(WORDS, np.int64), np.zeros(64, np.int64), np.zeros(64, np.int64)
    count_stages(np.zeros(WORDS, np.int64), 1, done.copy(), seen.copy(), 1)  # compiled before the clock runs
    with ThreadPoolExecutor(num_threads) as pool:
        work = [pool.submit(count_stages, team, wanted, done, seen, stages) for _ in range(num_threads)]
        return [item.result(timeout=120) for item in work]


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_nobody_runs_ahead(num_threads: int) -> None:
    largest = 0
    for _ in range(50):  # a busy machine may start a thread too late for its team
        results = together(num_threads, num_threads, STAGES if num_threads < 3 else 50)
        members = [result for result in results if result[0] >= 0]
        assert sorted(rank for rank, _, _ in members) == list(range(len(members)))
        assert {size for _, size, _ in members} == {len(members)}
        assert not any(mistakes for _, _, mistakes in members)
        largest = max(largest, len(members))
        if largest == num_threads:
            break
    assert largest >= min(num_threads, 2)


def test_whoever_never_comes_is_done_without() -> None:
    results = together(2, 4, stages=20)
    assert {size for rank, size, _ in results if rank >= 0} <= {1, 2}
    assert any(rank == 0 for rank, _, _ in results)
    assert not any(mistakes for _, _, mistakes in results)


def test_whoever_comes_late_has_nothing_to_do() -> None:
    team, words = np.zeros(WORDS, np.int64), np.zeros(64, np.int64)
    assert count_stages(team, 2, words, words.copy(), 3)[:2] == (0, 1)
    assert count_stages(team, 2, words, words.copy(), 3)[0] == -1


def test_shares_cover_everything_once() -> None:
    for count in (0, 1, 7, 30, 1000):
        for size in (1, 2, 3, 16):
            ranges = [share(count, rank, size) for rank in range(size)]
            assert [i for begin, end in ranges for i in range(begin, end)] == list(range(count))


def test_numbers_are_drawn_once() -> None:
    counters = np.zeros(2, np.int64)

    @njit(nogil=True)
    def draw_all(counters, limit):
        drawn = 0
        while draw(counters, 1, 1) < limit:
            drawn += 1
        return drawn

    draw_all(counters, 0)
    counters[:] = 0
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(draw_all(counters, 100_000))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(results) == 100_000
    assert counters[0] == 0


def test_a_function_is_called_by_every_thread() -> None:
    like = np.empty(0, np.int64)

    @cfunc(types.void(types.int64))
    def draw_one(frame):
        draw(array_at(frame, (1,), like), 0, 1)

    counters = np.zeros(1, np.int64)
    caller()(draw_one.address, counters.ctypes.data, 2)
    caller()(draw_one.address, counters.ctypes.data, 1)
    assert counters[0] == 3
