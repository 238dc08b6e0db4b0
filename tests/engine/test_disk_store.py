"""The disk tier's file: what is written comes back, or is said to be lost; and nothing stays behind."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.disk_store import DiskStore
from octavo.errors import ConfigError

SIZE = 1000
NUM_BLOCKS = 6


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path, NUM_BLOCKS, SIZE)


def content(seed: int) -> memoryview:
    return memoryview(random.Random(seed).randbytes(SIZE))


def read(store: DiskStore, block: int) -> bytes | None:
    into = memoryview(bytearray(SIZE))
    return bytes(into) if store.read(block, into) else None


def faults(store: DiskStore) -> tuple[int, int, int]:
    return store.write_failures, store.read_failures, store.checksum_failures


def test_blocks_come_back_as_they_were_written_last(store: DiskStore) -> None:
    for seed in range(3):
        for block in range(1, NUM_BLOCKS + 1):
            assert store.write(block, content(seed * 100 + block))
        for block in range(1, NUM_BLOCKS + 1):
            assert read(store, block) == content(seed * 100 + block)
    assert faults(store) == (0, 0, 0)


def test_short_writes_and_reads_go_on(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:70], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:30]], offset))
    assert store.write(2, content(2))
    assert read(store, 2) == content(2)


def test_a_block_that_was_never_written_or_is_forgotten_is_not_read(store: DiskStore) -> None:
    assert read(store, 1) is None
    store.write(1, content(1))
    store.forget(1)
    assert read(store, 1) is None
    assert faults(store) == (0, 2, 0)


@pytest.mark.parametrize("block", [0, -1, NUM_BLOCKS + 1])
def test_no_write_beyond_the_file(store: DiskStore, block: int) -> None:
    with pytest.raises(AssertionError, match="no block"):
        store.write(block, content(1))


class TestDamage:
    def test_any_flipped_bit_is_noticed(self, store: DiskStore) -> None:
        for block in (1, 2, 3):
            store.write(block, content(block))
        chance = random.Random(0)
        for _ in range(50):
            store.write(2, content(2))
            place = SIZE + chance.randrange(SIZE)
            byte = os.pread(store.fd, 1, place)[0] ^ 1 << chance.randrange(8)
            os.pwrite(store.fd, bytes([byte]), place)
            assert read(store, 2) is None
        assert faults(store) == (0, 0, 50)
        assert read(store, 1) == content(1)
        assert read(store, 3) == content(3)

    def test_a_block_in_the_wrong_place_is_noticed(self, store: DiskStore) -> None:
        store.write(1, content(1))
        store.write(2, content(2))
        os.pwrite(store.fd, content(1), SIZE)
        assert read(store, 2) is None
        assert faults(store) == (0, 0, 1)

    def test_a_truncated_file_loses_its_end(self, store: DiskStore) -> None:
        for block in (1, 2, 3):
            store.write(block, content(block))
        os.ftruncate(store.fd, 2 * SIZE - 1)
        assert read(store, 1) == content(1)
        assert read(store, 2) is None
        assert read(store, 3) is None
        assert faults(store) == (0, 2, 0)
        assert store.write(3, content(33))
        assert read(store, 3) == content(33)

    def test_a_read_error_loses_the_block(self, store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        store.write(1, content(1))
        with monkeypatch.context() as broken:
            broken.setattr(os, "preadv", fail)
            assert read(store, 1) is None
        assert faults(store) == (0, 1, 0)
        assert read(store, 1) == content(1)


class TestRefusedWrites:
    def test_a_full_disk_loses_the_old_content_too(self, store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
        pwrite = os.pwrite

        def half(fd: int, data: memoryview, offset: int) -> int:
            if offset % SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(fd, data[: SIZE // 2], offset)

        store.write(1, content(1))
        with monkeypatch.context() as full:
            full.setattr(os, "pwrite", half)
            assert not store.write(1, content(2))
        assert read(store, 1) is None
        assert faults(store) == (1, 1, 0)
        assert store.write(1, content(3))
        assert read(store, 1) == content(3)

    def test_the_kernels_own_refusal(self, tmp_path: Path) -> None:
        store = DiskStore(tmp_path, 64, 2**20)
        data, before = memoryview(bytes(2**20)), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 2**20, before[1]))
        try:
            assert store.write(32, data)
            assert not store.write(33, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert faults(store) == (1, 0, 0)
        assert store.write(33, data)

    def test_each_kind_is_logged_once(
        self,
        store: DiskStore,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for number in (errno.ENOSPC, errno.EIO):

            def fail(*_: Any, number: int = number) -> int:
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as broken:
                broken.setattr(os, "pwrite", fail)
                for block in range(1, NUM_BLOCKS + 1):
                    assert not store.write(block, content(block))
        for block in range(1, NUM_BLOCKS + 1):
            store.write(block, content(block))
        os.pwrite(store.fd, bytes(NUM_BLOCKS * SIZE), 0)
        for block in range(1, NUM_BLOCKS + 1):
            assert read(store, block) is None
        assert faults(store) == (2 * NUM_BLOCKS, 0, NUM_BLOCKS)
        texts = [record.getMessage() for record in caplog.records]
        assert len(texts) == 3
        for text, words in zip(texts, ("No space left", "Input/output error", "checksum"), strict=True):
            assert words in text
            assert str(tmp_path) in text


class TestFile:
    def test_no_folder_lists_it(self, store: DiskStore, tmp_path: Path) -> None:
        assert store.write(1, content(1))
        assert list(tmp_path.iterdir()) == []
        assert os.fstat(store.fd).st_nlink == 0

    def test_nor_where_the_file_system_has_no_nameless_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, refused = os.open, []

        def old(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                refused.append(path)
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return plain(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", old)
        store = DiskStore(tmp_path, NUM_BLOCKS, SIZE)
        assert refused
        assert list(tmp_path.iterdir()) == []
        assert store.write(1, content(1))
        assert read(store, 1) == content(1)

    def test_a_killed_process_leaves_nothing(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from octavo.engine.disk_store import DiskStore\n"
            "store = DiskStore(Path(sys.argv[1]), 8, 1000); assert store.write(3, memoryview(bytes(1000)))\n"
            f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
        )
        ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert ended.returncode == -signal.SIGKILL
        assert list(tmp_path.iterdir()) == []

    def test_space_is_taken_by_what_is_written(self, tmp_path: Path) -> None:
        store = DiskStore(tmp_path, 1024, 2**20)
        status = os.fstat(store.fd)
        assert status.st_size == 2**30
        assert status.st_blocks * 512 < 2**20

    def test_closing_gives_it_back(self, store: DiskStore) -> None:
        store.close()
        store.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(store.fd)

    def test_so_does_dropping_it(self, tmp_path: Path) -> None:
        store = DiskStore(tmp_path, NUM_BLOCKS, SIZE)
        fd = store.fd
        del store
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


class TestConfigErrors:
    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--swap-dir .*/none: No such file or directory; name a folder"):
            DiskStore(tmp_path / "none", 1, SIZE)

    def test_a_file_instead_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"/file: Not a directory"):
            DiskStore(tmp_path / "file", 1, SIZE)

    def test_a_folder_that_cannot_be_written_to(self) -> None:
        with pytest.raises(ConfigError, match=r"--swap-dir /proc: "):
            DiskStore(Path("/proc"), 1, SIZE)

    def test_too_little_space(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"needs 1,125,899,906,842,624,000 bytes in --swap-dir /.* are free"):
            DiskStore(tmp_path, 2**50, SIZE)
        assert list(tmp_path.iterdir()) == []

    def test_what_would_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.statvfs

        def nearly_full(path: Any) -> os.statvfs_result:
            values = list(real(path))
            values[1], values[4] = SIZE, 8  # f_frsize, f_bavail
            return os.statvfs_result(values)

        monkeypatch.setattr(os, "statvfs", nearly_full)
        with pytest.raises(ConfigError, match="where 8,000 are free"):
            DiskStore(tmp_path, 9, SIZE)
        assert DiskStore(tmp_path, 8, SIZE).write(8, content(8))
