"""Compiled code on disk is found again, and never taken for another."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from numba import int64, njit, types
from numba.core.registry import cpu_target

from octavo.config import KV_SCALE_BYTES
from octavo.kernels import kv_rows
from octavo.kernels.cpu import bits, disk_cache, fused, linear
from octavo.kernels.cpu.disk_cache import kept, kept_callback
from octavo.kernels.cpu.elementary import EXACT, FAST

_KEY = """
from octavo.kernels.cpu.linear import store_product
from octavo.kernels.cpu.disk_cache import _captured
print(_captured(store_product.py_func))
"""


def test_all_that_code_can_come_from_is_part_of_the_key() -> None:
    """Else an edited helper would go on running in its old form."""
    modules = {path for path in disk_cache.sources() if path.parent.name == "cpu"}
    assert modules == set(Path(str(bits.__file__)).parent.glob("*.py"))
    outside = set()
    for path in modules:
        source = path.read_text()
        if any(word in source for word in ("njit", "kept", "intrinsic", "overload")):
            outside |= {
                (str(node.module), alias.name)
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("octavo")
                for alias in node.names
                if not str(node.module).startswith("octavo.kernels.cpu")
            }
    assert Path(kv_rows.__file__) in disk_cache.sources()
    assert KV_SCALE_BYTES in disk_cache._version()
    assert outside == {
        ("octavo.kernels", "kv_rows"), ("octavo.kernels.kv_rows", "LARGEST"), ("octavo.kernels.kv_rows", "LEAST"),
        ("octavo.config", "KV_SCALE_BYTES"),
    }  # fmt: skip


def test_an_edited_source_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = disk_cache._version()
    (tmp_path / "edited.py").write_text("pass")
    sources = (*disk_cache.sources(), tmp_path / "edited.py")
    monkeypatch.setattr(disk_cache, "sources", lambda: sources)
    disk_cache._version.cache_clear()
    try:
        assert disk_cache._version() != before
    finally:
        disk_cache._version.cache_clear()


def test_what_differs_in_what_it_captured_differs_in_its_key() -> None:
    """The three are one function, of other functions that finish its sums."""
    products = linear.store_product, linear.add_product, linear.gated_product
    assert len({key_of(product) for product in products}) == 3
    variants = [fused._silu_mul_kernel(types.float32, parallel) for parallel in (False, True)]
    assert len({key_of(variant) for variant in variants}) == 2


def key_of(dispatcher) -> object:
    return dispatcher._cache._index_key((), cpu_target.target_context.codegen())


def test_keys_are_the_same_in_every_process() -> None:
    """Else nothing would ever be found; numba pickles compiled functions with ids that are new in each."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", _KEY], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def test_what_was_compiled_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    def add(factor: int):
        @njit(**EXACT)
        def scaled(x):
            return factor * x

        @kept(int64(int64), **EXACT)
        def sum_of(x):
            return scaled(x) + 1

        return sum_of

    assert [add(factor)(10) for factor in (2, 3)] == [21, 31]
    again = add(3)
    assert again(10) == 31
    assert sum(again.stats.cache_hits.values()) == 1
    assert not again.stats.cache_misses


def test_callbacks_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    def double():
        @kept_callback(int64(int64), **FAST)
        def doubled(x):
            return 2 * x

        return doubled

    assert [callback.ctypes(21) for callback in (double(), double())] == [42, 42]
    assert double().cache_hits == 1


def fresh():
    @kept(int64(int64), **EXACT)
    def doubled(x):
        return 2 * x

    return doubled


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"no pickle"])
def test_a_damaged_file_is_compiled_again(
    kind: str, content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    fresh()
    (file,) = tmp_path.rglob(f"*.{kind}")
    file.write_bytes(content)
    assert fresh()(21) == 42
    assert "cannot be read and is compiled again" in caplog.text
    again = fresh()
    assert again(21) == 42
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_folder_that_is_gone_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    @kept(**EXACT)
    def doubled(x):
        return 2 * x

    shutil.rmtree(doubled._cache.cache_path)
    assert doubled(21) == 42
    assert list(tmp_path.rglob("*.nbc"))


def test_a_full_disk_costs_a_compilation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    def full(self, name, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    assert fresh()(21) == 42
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    assert fresh()(21) == 42  # the index names a file that is not there


def test_who_reads_or_writes_is_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """numba writes an index of names first and then the code: another process would find its own name taken by that."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    @kept(**EXACT)
    def same(x):
        return x

    came = threading.Event()
    other = threading.Thread(target=lambda: (same(1), came.set()))
    with same._cache._alone():
        other.start()
        assert not came.wait(0.3)
    assert came.wait(60)
    other.join()
