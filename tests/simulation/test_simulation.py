"""Many seeds of the simulation; see `simulation.world`.

OCTAVO_NIGHTLY=1 pytest tests/simulation                                # twenty times as many
OCTAVO_SIMULATION_SEED=17 pytest tests/simulation -k one_seed           # again, with its events in a file
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from simulation.run import simulate
from simulation.sometimes import RARE, Sometimes

NIGHTLY = os.environ.get("OCTAVO_NIGHTLY") == "1"
CHUNKS = 10
SEEDS = 1_500 if NIGHTLY else 75

TESTS = Path(__file__).parents[1]
ELSEWHERE = """
import importlib.util, sys
sys.path.insert(0, "support")
spec = importlib.util.spec_from_file_location("simulation", "simulation/__init__.py")
sys.modules["simulation"] = importlib.util.module_from_spec(spec)
from simulation.run import simulate
print(simulate(int(sys.argv[1])).digest)
"""


@pytest.fixture(scope="module")
def seen() -> Sometimes:
    """What happened in all runs together."""
    return Sometimes()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_client_is_told_the_truth_and_nothing_is_left_behind(chunk: int, seen: Sometimes) -> None:
    for seed in range(chunk, SEEDS, CHUNKS):
        simulate(seed, seen)
    seen["runs"] += 1


@pytest.mark.parametrize("path", RARE)
def test_every_rare_path_was_taken(path: str, seen: Sometimes) -> None:
    if seen["runs"] < CHUNKS:
        pytest.skip("needs all the runs above")
    for seed in range(SEEDS, 3 * SEEDS):  # any change of the product shifts what a seed comes to
        if seen[path]:
            return
        simulate(seed, seen)
    assert seen[path] > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_decides_everything(seed: int) -> None:
    first, second = simulate(seed), simulate(seed)
    assert first.lines == second.lines
    assert first.digest == second.digest
    assert len(first.lines) > 100


@pytest.mark.skipif(not NIGHTLY, reason="starts processes; set OCTAVO_NIGHTLY=1")
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_decides_the_same_in_every_process(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", ELSEWHERE, "5"]
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == simulate(5).digest


@pytest.mark.skipif("OCTAVO_SIMULATION_SEED" not in os.environ, reason="OCTAVO_SIMULATION_SEED names the seed")
def test_one_seed() -> None:
    seed, lines = int(os.environ["OCTAVO_SIMULATION_SEED"]), list[str]()
    try:
        simulate(seed, lines=lines)
    finally:
        Path(tempfile.gettempdir(), f"octavo-simulation-{seed}.log").write_text("\n".join(lines))
