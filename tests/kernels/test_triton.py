"""What is particular to the Triton kernels: tiles, and that they compile for a real GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paged import make_problem

from octavo.kernels.triton import tiles


def test_tiles_cover_the_group_and_never_outgrow_the_chunk() -> None:
    assert tiles.decode_tile(64, 2, 3).rows == 16
    assert tiles.decode_tile(64, 2, 71).rows == 128
    assert tiles.prefill_tile(128, 2, 4, 2048).rows == 128
    assert tiles.prefill_tile(128, 2, 4, 5).rows == 32
    assert tiles.prefill_tile(256, 2, 71, 2).rows == 128


def test_wider_elements_keep_the_bytes_in_flight() -> None:
    half, single = (tiles.decode_tile(128, size, 4).keys * size for size in (2, 4))
    assert half == single


def test_a_head_that_fits_no_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 513 is larger than the 512"):
        tiles.decode_tile(513, 2, 1)


@pytest.mark.parametrize("max_seq_len", [700, 8192, 10**6])
def test_the_grid_may_be_larger_than_the_batch_needs(max_seq_len: int) -> None:
    """A captured graph is sized for the longest sequence ever, and replayed for short ones."""
    problem = make_problem([700, 300, 0])
    exact = problem.attend("triton")
    assert (problem.attend("triton", max_seq_len=max_seq_len) == exact).all()


def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not. In a process of its own: there Triton is not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_for_hopper.py")
    done = subprocess.run(
        [sys.executable, script],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {
        "_decode_kernel",
        "_merge_kernel",
        "_prefill_kernel",
        "_write_kernel",
        "_copy_kernel",
    }
