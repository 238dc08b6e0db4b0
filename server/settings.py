"""Who set which option: the command line comes before the environment, that before a file, and that before defaults.

    octavo serve --port 9000            OCTAVO_PORT=9000            octavo.yaml:   port: 9000
                                                                    or             server:
                                                                                     port: 9000

Complaints are in the words of whoever set the value: a flag that nobody wrote is not named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.config import EngineConfig, ServerConfig, take_known
from octavo.errors import ConfigError
from octavo.server.config_file import read_document
from octavo.server.options import VARIABLE_PREFIX, Option, all_options, hint, sections

CONFIG_VARIABLE = f"{VARIABLE_PREFIX}CONFIG"

# Ours, but no options of the server: API keys themselves, the cache folder, and what tests are told.
OTHER_VARIABLES = frozenset({"OCTAVO_API_KEY", "OCTAVO_CACHE", "OCTAVO_NIGHTLY", "OCTAVO_SIMULATION_SEED"})

# What Kubernetes tells every pod about a service, here one whose name is or begins with "octavo".
_SERVICE_LINK = re.compile(
    r"OCTAVO_(.+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
    r"|OCTAVO_(.+_)?PORT=(tcp|udp|sctp)://.*"
)
_SEE = "`octavo serve --help` lists the options"
_FLAG = re.compile(r"--[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Given:
    """A value, and who gave it.

    Attributes:
        name: As it was written. file: where, if in a file.
    """

    value: Any
    name: str
    file: str | None = None


class Settings:
    """What somebody has set.

    Attributes:
        given: Option's key → its value.
    """

    def __init__(self, given: Mapping[str, Given]) -> None:
        self.given = given

    def configs(self) -> tuple[EngineConfig, ServerConfig]:
        """The configs of the engine and of the server.

        Raises:
            ConfigError: A value is out of range, or contradicts another.
        """
        values = {all_options()[key].field: given.value for key, given in self.given.items()}
        try:
            server = take_known(ServerConfig, values)
            return EngineConfig.of(**values), server
        except ConfigError as error:
            raise ConfigError(self.in_their_words(str(error))) from error

    def in_their_words(self, message: str) -> str:
        """A message about flags, with each as its value was given."""
        named = [self.given[flag[2:]] for flag in _FLAG.findall(message) if flag[2:] in self.given]
        files = {given.file for given in named if given.file}
        text = _FLAG.sub(lambda flag: self._spelling(flag[0]), message)
        return f"{files.pop()}: {text}" if files else text

    def _spelling(self, flag: str) -> str:
        given = self.given.get(flag[2:])
        return given.name if given else flag


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str], file: str | None = None) -> Settings:
    """Collects what was set.

    Args:
        flags: Option's key → value, as parsed from the command line.
        environment: The process's variables; those set to nothing are not set.
        file: A file of options; by default the one that ``OCTAVO_CONFIG`` names, if it does.

    Raises:
        ConfigError: The file cannot be read, or something is unknown or malformed; names it as it was written.
    """
    file = file or environment.get(CONFIG_VARIABLE)
    return Settings(
        {
            **(_from_file(file) if file else {}),
            **_from_environment(environment),
            **{key: Given(value, f"--{key}") for key, value in flags.items()},
        }
    )


def _from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    known = {option.variable: option for option in all_options().values()}
    given = {}
    for variable, text in environment.items():
        if not text or not _is_option(variable, text):
            continue
        option = known.get(variable)
        if option is None:
            names = [name.removeprefix(VARIABLE_PREFIX) for name in [*known, CONFIG_VARIABLE, *OTHER_VARIABLES]]
            near = hint(variable.removeprefix(VARIABLE_PREFIX), names, _SEE, prefix=VARIABLE_PREFIX)
            raise ConfigError(f"unknown variable {variable}; {near}")
        given[option.key] = Given(_told(variable, option.parse, text), variable)
    return given


def _is_option(variable: str, text: str) -> bool:
    """Whether a variable is meant to set an option."""
    return (
        variable.startswith(VARIABLE_PREFIX)
        and variable not in OTHER_VARIABLES
        and variable != CONFIG_VARIABLE
        and not _SERVICE_LINK.fullmatch(variable)
        and not _SERVICE_LINK.fullmatch(f"{variable}={text}")
    )


def _from_file(file: str) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for name, option, value in _entries(file, read_document(Path(file).expanduser())):
        if option.key in given:
            raise ConfigError(f"{file}: {option.key} is given twice, as {given[option.key].name} and as {name}")
        given[option.key] = Given(_told(f"{file}: {name}", option.read, value), name, file)
    return given


def _entries(file: str, document: Mapping[Any, Any]) -> Iterator[tuple[str, Option, Any]]:
    """What a document sets: each option's name as written, the option, its value."""
    for name, value in document.items():
        if name not in sections() or (name in all_options() and not isinstance(value, dict)):
            yield name, _option(file, name, None), value
        elif not isinstance(value, dict | None):
            raise ConfigError(f"{file}: {name}: is a group of options, not an option")
        else:
            for inner, inner_value in (value or {}).items():
                yield f"{name}.{inner}", _option(file, inner, name), inner_value


def _option(file: str, name: Any, section: str | None) -> Option:
    key = str(name).replace("_", "-")
    option = all_options().get(key)
    if option is None:
        where, known = (f" in {section}", [*all_options()]) if section else ("", [*all_options(), *sections()])
        raise ConfigError(f"{file}: unknown option {str(name)[:80]!r}{where}; {hint(key, known, _SEE)}")
    if section not in (None, option.section):
        raise ConfigError(f"{file}: {section}.{name}: belongs to {option.section}")
    return option


def _told(source: str, parse: Callable[[Any], Any], value: Any) -> Any:
    """Parses, and says where the value comes from if it cannot be."""
    try:
        return parse(value)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
