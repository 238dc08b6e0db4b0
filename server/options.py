"""The options of ``octavo serve``, as all their sources see them: command line, environment and file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from octavo.config import EngineConfig, ServerConfig, flag_of, options, parse_bytes
from octavo.errors import ConfigError

VARIABLE_PREFIX = "OCTAVO_"

_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        key: Its name in files, and on the command line after two dashes.
        field: The config's field. section: the group that it belongs to. default: its value if nobody says otherwise.
        choices: The accepted values, if they are few. help: one sentence.
        convert: Turns text into a value; raises `ConfigError`.
    """

    key: str
    field: str
    section: str
    default: Any
    choices: tuple[str, ...] | None
    help: str
    convert: Callable[[str], Any]

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return VARIABLE_PREFIX + self.key.replace("-", "_").upper()

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return isinstance(self.default, bool)

    def parse(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            ConfigError: It stands for none; does not name the option.
        """
        try:
            value = parse_bool(text) if self.is_switch else self.convert(text)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{self.flag}: ")) from None
        if self.choices is not None and value not in self.choices:
            raise ConfigError(f"must be one of {', '.join(self.choices)}, not {text!r}")
        return value

    def read(self, value: Any) -> Any:
        """The value that something in a file stands for: a text, or a number, truth or list of the file's own.

        Raises:
            ConfigError: It stands for none; does not name the option.
        """
        if isinstance(value, str):
            return self.parse(value)
        if value is None:
            raise ConfigError("has no value; leave it out to get the default")
        if isinstance(value, bool) and self.is_switch:
            return value
        if isinstance(value, list) and isinstance(self.default, tuple):
            return tuple(value)
        if type(value) in (int, float) and (self.is_switch or self.convert is not str):
            return self.parse(_short(value))
        wanted = "true or false" if self.is_switch else "a text, in quotes" if self.convert is str else "one value"
        raise ConfigError(f"takes {wanted}, not {_short(value)}")

    @property
    def default_in_words(self) -> str:
        """For ``--help``; empty where the help itself says what happens."""
        if self.default is None or self.default == ():
            return ""
        if self.is_switch:
            return "on" if self.default else "off"
        return bytes_in_words(self.default) if self.convert is parse_bytes else str(self.default)


def parse_bool(text: str) -> bool:
    """Reads a truth: ``true``, ``yes`` and ``1``, or ``false``, ``no`` and ``0``.

    Raises:
        ConfigError: The text is none of them.
    """
    try:
        return _TRUTHS[text.strip().lower()]
    except KeyError:
        raise ConfigError(f"{text!r} is neither true nor false; write true, false, 1, 0, yes or no") from None


def bytes_in_words(size: int) -> str:
    """A size in the largest unit that it is a whole number of: ``8 MiB``."""
    for unit, name in _UNITS:
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return str(size)


def sections() -> dict[str, type]:
    """Section name → its config class, in the order of ``--help``."""
    return {**EngineConfig.sections(), "server": ServerConfig}


@cache
def all_options() -> dict[str, Option]:
    """Key → option, in the order of ``--help``."""
    found = {}
    for section, cls in sections().items():
        for spec in options(cls):
            key = flag_of(cls, spec.name).removeprefix("--")
            about = spec.metadata
            found[key] = Option(key, spec.name, section, spec.default, about["choices"], about["help"], about["parse"])
    return found


def hint(name: str, known: list[str], otherwise: str, *, prefix: str = "") -> str:
    """What to say to somebody who wrote a name that does not exist; all names without the prefix that they share."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else otherwise


def _short(value: Any) -> str:
    """A value as it may stand in a message: a file can hold numbers that Python refuses to write out."""
    try:
        text = str(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}…"
