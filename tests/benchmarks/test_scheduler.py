"""The scheduler's benchmark: what it calls a step and an addition, whose turn it is, and what it prints."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import scheduler_benchmark
import scheduler_work
import stub_peer
from scheduler_benchmark import OctavoScheduler, find_vllm, main, table
from scheduler_work import ROUNDS, Measurement, Work
from stub_peer import Clock, FakeScheduler

BENCHMARKS = Path(scheduler_work.__file__).parent


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """A folder of peers in which vLLM's interpreter runs the stub in place of `scheduler_vllm.py`."""
    python = tmp_path / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/bin/sh
[ "$1" = "{BENCHMARKS}/scheduler_vllm.py" ] || exit 9
[ -z "$STUB_FAILS" ] || {{ echo "$STUB_FAILS" >&2; exit 3; }}
shift
PYTHONPATH="{BENCHMARKS}" exec "{sys.executable}" "{stub_peer.__file__}" "$@"
"""
    )
    python.chmod(0o755)
    return tmp_path


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_benchmark, "find_vllm", lambda peers_dir: None)


def measured(subject: Any, work: Work) -> Measurement:
    measurement = Measurement(subject, work)
    assert sum(1 for _ in measurement.turns()) == ROUNDS + 1
    return measurement


class TestMeasurement:
    def test_the_models_time_and_the_aborts_are_nobodys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()
        monkeypatch.setattr(scheduler_work, "time", clock)
        work = Work(running=32, steps=20, pool_blocks=5000)
        row = measured(FakeScheduler(work, clock), work).row()
        assert row == pytest.approx(
            {"running": 32, "pool_blocks": 5000, "step_us": 500, "schedule_us": 300, "update_us": 200, "add_us": 12}
        )

    def test_an_addition_is_held_against_both_its_neighbours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()
        monkeypatch.setattr(scheduler_work, "time", clock)
        subject = FakeScheduler(work := Work(running=16, steps=20, pool_blocks=5000), clock)
        subject.drift = 1
        assert measured(subject, work).row()["add_us"] == pytest.approx(12)

    @pytest.mark.parametrize(("running", "crossing"), [(16, {1}), (64, {4}), (160, {10}), (40, {2, 4})])
    def test_few_cross_into_a_new_block_at_once(self, running: int, crossing: set[int]) -> None:
        subject = FakeScheduler(work := Work(running, steps=20, pool_blocks=50_000))
        measurement = Measurement(subject, work)
        next(measurement.turns())
        subject.crossings.clear()
        for _ in range(16):
            measurement._step()
        assert set(subject.crossings) == crossing
        assert sum(subject.crossings) == running

    def test_foresees_the_longest_sequence(self) -> None:
        for running in (1, 16, 40):
            subject = FakeScheduler(work := Work(running, steps=20, pool_blocks=50_000))
            measured(subject, work)
            assert max(subject.lengths.values()) == work.longest

    def test_a_sequence_that_ends_is_noticed(self) -> None:
        subject = FakeScheduler(work := Work(running=16, steps=20, pool_blocks=5000))
        turns = Measurement(subject, work).turns()
        next(turns)
        del subject.lengths[3]
        with pytest.raises(AssertionError, match="gave way"):
            list(turns)


class TestOctavo:
    def test_does_the_work(self) -> None:
        subject = OctavoScheduler(work := Work(running=16, steps=20, pool_blocks=2000))
        row = measured(subject, work).row()
        assert 0 < row["schedule_us"] < row["step_us"]
        assert 30 < subject.bytes_per_block < 50
        assert subject.scheduler.counters.preemptions == 0
        assert subject.scheduler.check_integrity() == []

    def test_in_a_used_pool_each_new_block_takes_an_old_ones_place(self) -> None:
        subject = OctavoScheduler(work := Work(running=16, steps=20, pool_blocks=2000, used=True))
        pool = subject.scheduler.manager.pool
        next(turns := Measurement(subject, work).turns())
        assert pool.counts.free == 0
        before = pool.evictions
        for _ in turns:
            assert pool.counts.free == 0
        blocks = scheduler_work.PROMPT // scheduler_work.BLOCK_SIZE
        assert pool.evictions - before >= ROUNDS * work.additions_per_turn * blocks
        assert subject.scheduler.check_integrity() == []


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (["--steps", "700"], "longer than 2048 tokens"),
            (["--running", "64", "--pool-blocks", "100000", "2000"], "--pool-blocks 2000: 64 running"),
            (["--running", "0"], "at least 1"),
        ],
    )
    def test_work_that_cannot_be_measured(
        self, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(options)
        assert reason in capsys.readouterr().err

    def test_where_vllm_is(self, peers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert find_vllm(peers) == peers / "vllm" / "bin" / "python"
        assert find_vllm(tmp_path / "elsewhere") is None
        monkeypatch.setattr(scheduler_benchmark.importlib.util, "find_spec", lambda name: name == "vllm" or None)
        assert find_vllm(None) == Path(sys.executable)
        monkeypatch.setattr(scheduler_benchmark.importlib.util, "find_spec", lambda name: None)
        assert find_vllm(None) is None


ROW = {"running": 1024, "pool_blocks": 5000, "bytes_per_block": 33.25}


def test_ratio_is_how_many_times_octavos() -> None:
    ours = ROW | {"step_us": 500.0, "schedule_us": 300.0, "update_us": 200.0, "add_us": 100.0}
    theirs = ROW | {"step_us": 6000.0, "schedule_us": 450.0, "update_us": 100.0, "add_us": 203.0}
    lines = table([ours, ours | {"pool_blocks": 10**6}], {"name": "vLLM", "rows": [theirs]}).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "running blocks step vLLM × schedule vLLM × update vLLM × add vLLM × bytes/block",
        "1,024 5,000 500 6,000 12.0 300 450 1.5 200 100 0.5 100 203 2.0 33.2",
        "1,024 1,000,000 500 – – 300 – – 200 – – 100 – – 33.2",
    ]
    assert len({len(line) for line in lines}) == 1


class TestMain:
    def test_both_in_one_document(self, peers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "rows.json"
        options = ["--running", "16", "32", "--steps", "10", "--pool-blocks", "3000", "4000"]
        assert main([*options, "--peers-dir", str(peers), "--json", str(file)]) == 0
        document = json.loads(file.read_text())
        (peer,) = document["peers"]
        sizes = [(16, 3000), (16, 4000), (32, 3000), (32, 4000)]
        assert [(row["running"], row["pool_blocks"]) for row in document["rows"]] == sizes
        assert [(row["running"], row["pool_blocks"]) for row in peer["rows"]] == [(16, 3000), (32, 3000)]
        assert [row["step_us"] for row in peer["rows"]] == pytest.approx([500, 500])
        assert [row["add_us"] for row in peer["rows"]] == pytest.approx([12, 12])
        assert (peer["version"], "cpu" in document["host"]) == ("stub", True)
        assert str(tmp_path) not in file.read_text()
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[3] for line in lines] == ["vLLM", "500", "–", "500", "–"]
        assert lines[1].split()[4] == f"{500 / document['rows'][0]['step_us']:.1f}"

    def test_they_take_turns(self, peers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = tmp_path / "log"
        monkeypatch.setenv("STUB_LOG", str(log))
        octavo = [FakeScheduler(Work(16, 10, 3000), name=name, log=log) for name in ("octavo", "octavo-again")]
        made = iter(octavo)
        monkeypatch.setattr(scheduler_benchmark, "OctavoScheduler", lambda work: next(made))
        assert (
            main(["--running", "16", "--steps", "10", "--pool-blocks", "3000", "4000", "--peers-dir", str(peers)]) == 0
        )
        assert log.read_text().split() == ["octavo", "vllm", "octavo-again"] * (ROUNDS + 1)

    def test_a_peer_that_fails_is_told_of(
        self, peers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("STUB_FAILS", "no such spec")
        assert main(["--running", "16", "--steps", "10", "--peers-dir", str(peers)]) == 1
        out, err = capsys.readouterr()
        assert [line.split()[0] for line in out.splitlines()] == ["running", "16"]
        assert "vLLM could not be measured: it ended with status 3\nno such spec" in err

    def test_without_vllm(self, without_vllm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cores = len(os.sched_getaffinity(0))
        assert main(["--running", "16", "--steps", "10", "--json", str(tmp_path / "rows.json")]) == 0
        assert len(os.sched_getaffinity(0)) == cores
        note, head, row = capsys.readouterr().out.splitlines()
        assert "vLLM is not installed" in note
        assert head.split() == ["running", "blocks", "step", "schedule", "update", "add", "bytes/block"]
        assert row.split()[:2] == ["16", "100,000"]
        assert json.loads((tmp_path / "rows.json").read_text())["peers"] == []
