"""Server-sent events, parsed as the bytes come in."""

from __future__ import annotations


class EventParser:
    """Cuts a byte stream into the ``data`` of its events; a chunk may end anywhere.

    Comments and other fields are skipped. Lines end in LF or CRLF; a lone CR, which the standard also allows and
    no server sends, is not a line's end.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Takes the next bytes; returns the events that they complete."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
