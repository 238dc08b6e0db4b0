"""The disk tier's file: blocks of one size with checksums, and gone with the process however that ends."""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
import zlib
from array import array
from pathlib import Path

from octavo.errors import ConfigError

log = logging.getLogger(__name__)

_UNWRITTEN = -1


class DiskStore:
    """Blocks in a file without a name. A block is read back exactly as it was written, or not at all.

    Faults of the disk are counted and answered with False, and each kind of them is logged once.

    Args:
        folder: Where the file lies.
        num_blocks: Blocks that it can hold; ids are ``1 … num_blocks``.
        block_bytes: Bytes of one block.

    Attributes:
        fd: The file; block i begins at ``(i - 1) * block_bytes``.
        write_failures, read_failures: Blocks that the disk did not take, or did not give back in full.
        checksum_failures: Blocks that came back as something else than was written.

    Raises:
        ConfigError: The folder does not exist, cannot be written to, or is too full.
    """

    def __init__(self, folder: Path, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.write_failures = 0
        self.read_failures = 0
        self.checksum_failures = 0
        self.fd = _create(folder, num_blocks * block_bytes)
        self._folder = folder
        self._close = weakref.finalize(self, os.close, self.fd)
        self._checksums = array("q", [_UNWRITTEN]) * (num_blocks + 1)
        self._logged: set[str] = set()

    def write(self, block: int, data: memoryview) -> bool:
        """Writes a block; False if the disk does not take it, and then the block holds nothing.

        Args:
            data: ``block_bytes`` bytes.
        """
        self.forget(block)
        try:
            self._write_all(block, data)
        except OSError as error:
            self.write_failures += 1
            self._log(f"cannot write ({error.strerror})", block)
            return False
        self._checksums[block] = zlib.crc32(data)
        return True

    def read(self, block: int, into: memoryview) -> bool:
        """Reads a block; False if it does not come back as it was written, and then ``into`` holds garbage.

        Args:
            into: ``block_bytes`` bytes.
        """
        if self._checksums[block] == _UNWRITTEN:
            self.read_failures += 1
            self._log("asked for a block that was never written", block)
            return False
        try:
            self._read_all(block, into)
        except OSError as error:
            self.read_failures += 1
            self._log(f"cannot read ({error.strerror})", block)
            return False
        if zlib.crc32(into) != self._checksums[block]:
            self.checksum_failures += 1
            self._log("content does not match its checksum", block)
            return False
        return True

    def forget(self, block: int) -> None:
        """Makes a block unreadable until it is written again."""
        assert 1 <= block <= self.num_blocks, f"the disk tier has no block {block}"
        self._checksums[block] = _UNWRITTEN

    def close(self) -> None:
        """Gives the file's space back; the end of the process does so too."""
        self._close()

    def _write_all(self, block: int, data: memoryview) -> None:
        assert data.nbytes == self.block_bytes
        start, done = (block - 1) * self.block_bytes, 0
        while done < self.block_bytes:
            done += os.pwrite(self.fd, data[done:], start + done)

    def _read_all(self, block: int, into: memoryview) -> None:
        assert into.nbytes == self.block_bytes
        start, done = (block - 1) * self.block_bytes, 0
        while done < self.block_bytes:
            count = os.preadv(self.fd, [into[done:]], start + done)
            if not count:
                raise OSError(0, "the file ends too early")
            done += count

    def _log(self, fault: str, block: int) -> None:
        if fault not in self._logged:
            self._logged.add(fault)
            log.error("disk tier in %s: %s, block %d; more of this is only counted", self._folder, fault, block)


def check_folder(folder: Path, size: int) -> None:
    """Refuses a folder that cannot hold a disk tier of ``size`` bytes.

    Raises:
        ConfigError: It does not exist, cannot be written to, or is too full.
    """
    os.close(_create(folder, size))


def _create(folder: Path, size: int) -> int:
    """Opens a sparse file that no folder lists, or never again once it is open, and returns its descriptor."""
    try:
        # O_TMPFILE where the file system knows it, else a file that is unlinked at once.
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            status = os.statvfs(file.fileno())
            free = status.f_bavail * status.f_frsize
            if free < size:
                raise ConfigError(f"--swap-disk needs {size:,} bytes in --swap-dir {folder}, where {free:,} are free")
            os.ftruncate(file.fileno(), size)
            return os.dup(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"--swap-dir {folder}: {error.strerror}; name a folder that exists, can be written to "
            f"and may hold a file of {size:,} bytes"
        ) from error
