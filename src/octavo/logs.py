"""How Octavo's processes log: one line a record, for people or as JSON. Set up once, when a process starts.

    2026-11-23 01:49:04,123 INFO octavo.request: POST /v1/chat/completions 200 tenant=chat output_tokens=34
    {"time": "2026-11-23T00:49:04.123Z", "level": "info", "logger": "octavo.request", "process": "server", …}

What a client sends may end up in a record. So control characters are written as escapes in both forms, and a traceback
is indented or within a string: whatever stands at the beginning of a line was written by us. Formatting never raises.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

FORMATS: Final = ("human", "json")

# What every record has; anything else was given as ``extra`` and is a field.
_STANDARD: Final = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message"})
_MOST_NESTING: Final = 4


def set_up(form: str, level: str, process: str) -> None:
    """Sends all logging of this process to stderr; called again, in another way.

    Octavo's own loggers speak from ``level`` on. Those of libraries speak of warnings and worse only: what they have to
    say beyond that can be a client's words.

    Args:
        form: One of `FORMATS`.
        level: "debug", "info", "warning" or "error".
        process: What this process is, "server" or "engine".
    """
    handler = logging.StreamHandler()  # to stderr
    handler.setFormatter(JsonFormatter(process) if form == "json" else HumanFormatter(process))
    own = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if isinstance(known.formatter, _Formatter)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(max(own, logging.WARNING))
    logging.getLogger("octavo").setLevel(own)
    logging.captureWarnings(True)
    if form == "json":
        # What ends the process is the line that matters most.
        sys.excepthook = _log_uncaught


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given to a record as ``extra``."""
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def printable(text: str) -> str:
    """A text on one line: whatever is no visible character or blank is written as an escape, such as ``\\n``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class _Formatter(logging.Formatter, ABC):
    """Formats without ever raising.

    Args:
        process: What this process is.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self._line(record)
        except Exception:  # a number of thousands of digits, a date of another era
            bare = logging.makeLogRecord({"levelno": record.levelno, "levelname": record.levelname})
            bare.name, bare.msg = _text(record.name), "a record that cannot be written"
            return self._line(bare)

    @abstractmethod
    def _line(self, record: logging.LogRecord) -> str: ...


class JsonFormatter(_Formatter):
    """One JSON object a line, in ASCII.

    It has ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``process``, ``message``, the record's own fields, and
    ``exception`` with a traceback if there is one.
    """

    def _line(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": _message(record),
        }
        for name, value in fields_of(record).items():
            entry.setdefault(str(name), _plain(value))
        if told := _traceback(self, record):
            entry["exception"] = told
        return json.dumps(entry)


class HumanFormatter(_Formatter):
    """Time, level, logger, message and fields; a traceback follows, indented. Processes but the server are named."""

    def _line(self, record: logging.LogRecord) -> str:
        process = "" if self._process == "server" else f"{self._process}/"
        fields = "".join(f" {name}={_word(value)}" for name, value in fields_of(record).items() if value is not None)
        line = f"{self.formatTime(record)} {record.levelname} {process}{record.name}: {_message(record)}{fields}"
        told = _traceback(self, record)
        return "\n".join([printable(line), *(f"    {printable(part)}" for part in told.split("\n") if told)])


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit, or that cannot be written
        return f"{_text(record.msg)} (its arguments do not fit)"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """A record's exception and stack; empty if it has none."""
    try:
        told = formatter.formatException(record.exc_info) if record.exc_info else record.exc_text or ""
        return "\n".join(part for part in (told, record.stack_info) if part)
    except Exception:
        return "an exception that cannot be written"


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any, nesting: int = 0) -> Any:
    """A value as JSON has it; what JSON has nothing for becomes a text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if nesting < _MOST_NESTING:
        if isinstance(value, Mapping):
            return {_text(key): _plain(item, nesting + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(item, nesting + 1) for item in value]
    return _text(value)


def _word(value: Any) -> str:
    """A field's value for people: bare if it is one word, otherwise as JSON."""
    if isinstance(value, list | tuple) and value:
        return ",".join(_word(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    plain = _plain(value)
    bare = isinstance(plain, str) and plain and plain.isprintable() and not set(plain) & set(' ="\\,')
    return str(plain) if bare else json.dumps(plain, ensure_ascii=False)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"a {type(value).__name__} that cannot be written"


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logging.getLogger("octavo").critical("the process ended with an exception", exc_info=(kind, error, traceback))
