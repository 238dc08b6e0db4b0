"""Options as text, as a file's own values, and as help."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config import TenantConfig
from octavo.errors import ConfigError
from octavo.server.options import all_options, bytes_in_words, hint, parse_bool, sections


def test_every_option_has_a_name_of_its_own() -> None:
    options = all_options().values()
    assert len({option.field for option in options}) == len(options)
    assert len({option.variable for option in options}) == len(options)
    assert {option.section for option in options} == set(sections())
    # A group and an option may share a name only where the value tells which is meant.
    assert set(all_options()) & set(sections()) == {"model"}


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("port", 9000, 9000),
        ("port", "9000", 9000),
        ("kv-cache-memory", "2GiB", 2**31),
        ("kv-cache-memory", 1024, 1024),
        ("max-model-len", "32k", 32768),
        ("shutdown-timeout", 5, 5.0),
        ("shutdown-timeout", 0.5, 0.5),
        ("prefix-caching", False, False),
        ("prefix-caching", "No", False),
        ("prefix-caching", 1, True),
        ("dtype", "float32", "float32"),
        ("model", "org/name", "org/name"),
        ("tenants", "chat:weight=2", (TenantConfig(name="chat", weight=2.0),)),
        ("tenants", [{"name": "chat", "weight": 2}], ({"name": "chat", "weight": 2},)),
    ],
)
def test_what_files_may_say(key: str, value: Any, meant: Any) -> None:
    read = all_options()[key].read(value)
    assert read == meant
    assert type(read) is type(meant)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("port", "http", "'http' is not a whole number"),
        ("port", 80.5, "'80.5' is not a whole number"),
        ("port", True, "takes one value, not True"),
        ("port", [1], "takes one value"),
        ("port", {"a": 1}, "takes one value"),
        ("port", None, "has no value"),
        ("block-size", -1, "is not a count"),
        pytest.param("block-size", 1 << 20_000, "a number of thousands of digits", id="huge"),
        ("prefix-caching", "maybe", "neither true nor false"),
        ("prefix-caching", [], "takes true or false"),
        ("prefix-caching", 2, "neither true nor false"),
        ("host", 127, "takes a text, in quotes, not 127"),
        ("dtype", "int3", "must be one of auto, float32"),
        ("tenants", "chat:weigth=2", "'weigth=2' is not understood"),
    ],
)
def test_what_they_may_not(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        all_options()[key].read(value)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", " yes "])
def test_truths(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["false", "0", "No"])
def test_falsehoods(text: str) -> None:
    assert parse_bool(text) is False


@pytest.mark.parametrize(("size", "words"), [(2**31, "2 GiB"), (2**23, "8 MiB"), (1024, "1 KiB"), (0, "0"), (10, "10")])
def test_sizes_for_people(size: int, words: str) -> None:
    assert bytes_in_words(size) == words


def test_hints() -> None:
    assert hint("prot", ["port", "host"], "look it up") == "did you mean port?"
    assert hint("zebra", ["port", "host"], "look it up") == "look it up"
    assert hint("PROT", ["PORT"], "", prefix="X_") == "did you mean X_PORT?"
