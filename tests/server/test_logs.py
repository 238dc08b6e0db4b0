"""How records become lines: valid JSON, or a line for people; whatever a client has put into them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.logs import FORMATS, HumanFormatter, JsonFormatter, printable, set_up
from octavo.server.console import LogNarrator, Narrator, narrator_of

FORGED = "x\n2026-11-23 01:49:04,123 ERROR octavo: forged\r\x1b[2J\u2028\u202e\udc80\0"


def record(message: Any = "hello %s", *arguments: Any, **fields: Any) -> logging.LogRecord:
    made = logging.getLogger("octavo.test").makeRecord(
        "octavo.test", logging.WARNING, "file.py", 1, message, arguments, None, extra=fields
    )
    made.created = 1_795_398_544.5
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter("engine").format(made)
    assert line.isascii()
    assert line.isprintable()
    told: dict[str, Any] = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    return told


def as_words(made: logging.LogRecord) -> str:
    return HumanFormatter("server").format(made)


def failed(error: Exception) -> logging.LogRecord:
    made = record("it broke")
    try:
        raise error
    except Exception:
        made.exc_info = sys.exc_info()
    return made


def test_json_has_time_level_logger_message_and_fields() -> None:
    assert as_json(record("hello %s", "you", tenant="ada", seconds=0.25, reasons=["stop"], nothing=None)) == {
        "time": "2026-11-23T01:49:04.500Z",
        "level": "warning",
        "logger": "octavo.test",
        "process": "engine",
        "message": "hello you",
        "tenant": "ada",
        "seconds": 0.25,
        "reasons": ["stop"],
        "nothing": None,
    }


def test_people_read_the_fields_behind_the_message() -> None:
    told = as_words(record("hello", tenant="ada", seconds=0.25, reasons=["stop", "length"], text="a b", nothing=None))
    assert told.endswith('WARNING octavo.test: hello tenant=ada seconds=0.25 reasons=stop,length text="a b"')


def test_people_are_told_which_process_speaks() -> None:
    assert " WARNING engine/octavo.test: hello" in HumanFormatter("engine").format(record("hello"))


@pytest.mark.parametrize("where", ["message", "argument", "field", "name", "key", "nested"])
def test_nobody_can_forge_a_line(where: str) -> None:
    made = {
        "message": lambda: record(FORGED),
        "argument": lambda: record("hello %s", FORGED),
        "field": lambda: record("hello", id=FORGED),
        "name": lambda: record("hello", **{FORGED: 1}),
        "key": lambda: record("hello", data={FORGED: 1}),
        "nested": lambda: record("hello", data=[[FORGED]]),
    }[where]()
    assert as_words(made).isprintable()
    as_json(made)


def test_a_traceback_is_one_field_or_indented_lines() -> None:
    made = failed(ValueError(FORGED))
    assert "ZeroDivision" not in as_json(made)["exception"]
    assert "ValueError: x\n2026" in as_json(made)["exception"]
    first, *rest = as_words(made).split("\n")
    assert first.endswith("it broke")
    assert len(rest) > 3
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert as_words(made).splitlines() == [first, *rest]


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError


class UnwritableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "made",
    [
        record("%d", "no number"),
        record("%s %s", "one"),
        record(Unwritable()),
        record("%s", Unwritable()),
        record("hello", value=Unwritable(), values=[Unwritable()], keys={Unwritable: 1}),
        record("hello", value=float("nan"), values=[float("inf")]),
        record("hello", value=10**5000),
        record("hello", value=b"\xff", deep=[[[[[[[[1]]]]]]]]),
        failed(UnwritableError()),
    ],
)
def test_formatting_never_raises(made: logging.LogRecord) -> None:
    assert as_json(made)["level"] == "warning"
    assert "WARNING octavo.test: " in as_words(made)


def test_a_field_cannot_replace_what_every_line_has() -> None:
    made = record("hello", time="never", level="low", logger="other")
    told = as_json(made)
    assert (told["level"], told["logger"], told["time"]) == ("warning", "octavo.test", "2026-11-23T01:49:04.500Z")


def test_printable_text_stays_as_it_is() -> None:
    assert printable("naïve Größe 漢字 \\n") == "naïve Größe 漢字 \\n"
    assert printable("a\tb\x7f\n") == "a\\tb\\x7f\\n"


@pytest.mark.parametrize("form", FORMATS)
def test_set_up_twice_writes_each_line_once(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up("human", "warning", "engine")
    set_up(form, "info", "engine")
    logging.getLogger("octavo.somewhere").info("hello")
    logging.getLogger("octavo.somewhere").debug("too quiet")
    logging.getLogger("library").info("a client's words")
    logging.getLogger("library").warning("beware")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    if form == "json":
        assert [json.loads(line)["message"] for line in lines] == ["hello", "beware"]


def test_in_json_a_process_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("json", "info", "server")
    error = ZeroDivisionError("by zero")
    sys.excepthook(ZeroDivisionError, error, None)
    told = json.loads(capsys.readouterr().err)
    assert told["level"] == "critical"
    assert "by zero" in told["exception"]


def test_in_json_the_start_is_told_by_records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")
    assert type(narrator_of("human")) is Narrator
    narrator = narrator_of("json")
    assert isinstance(narrator, LogNarrator)
    with narrator.working("looking"):
        narrator.progress("100%s")
    narrator.ready(["a report"], "http://x", "tiny")
    narrator.note("stopping")
    narrator.failure(ConfigError("no"))
    assert [record.getMessage() for record in caplog.records] == [
        *("looking", "100%s", "a report", "ready", "stopping", "no")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_format": "xml"}, "--log-format must be one of human, json"),
        ({"log_stats_interval": -1.0}, "--log-stats-interval must not be negative, got -1.0"),
        ({"otlp_endpoint": "localhost:4318"}, "'localhost:4318' is not understood; write it as http://localhost:4318"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**options)
