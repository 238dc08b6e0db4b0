"""A command in a terminal, as a person sees and types it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

_TIMEOUT_SECONDS = 30


class Terminal:
    """Runs a command in a pseudo-terminal.

    Attributes:
        seen: Everything that it wrote so far.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.seen = ""
        self._unread = 0  # what was seen and has been waited for ends here
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            # As a shell does it: tests that run in the background ignore Ctrl-C, and their children would, too.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(command[0], list(command), dict(environment))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)  # hangs up, which ends whatever still runs

    def type(self, text: str) -> None:
        """Types; ``\\x03`` is Ctrl-C and ``\\x04`` is Ctrl-D."""
        os.write(self._fd, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Waits for something new that matches."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while (found := re.compile(pattern).search(self.seen, self._unread)) is None:
            assert self._read(deadline), f"no {pattern!r} in {self.seen[self._unread :]!r}"
        self._unread = found.end()
        return found

    def wait(self) -> int:
        """Waits for the end; returns the exit status."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"it does not end after {self.seen[self._unread :]!r}"
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, deadline: float) -> bool:
        """Reads more; False at the end, or if nothing comes in time."""
        ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
        try:
            piece = os.read(self._fd, 4096) if ready else b""
        except OSError:  # how a terminal says that nobody is left at its other end
            piece = b""
        self.seen += piece.decode(errors="replace")
        return bool(piece)
