"""Command lines: parsers whose errors are one line, and the options of ``octavo serve`` on them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError
from octavo.server.options import Option, all_options, hint, sections
from octavo.server.settings import Settings, read_settings

SETUP_ERROR = 1
USAGE_ERROR = 2
INTERRUPTED = 128 + 2

_SOURCES = """\
Every option can also be given as a variable, such as OCTAVO_PORT=9000, or in the file that --config or OCTAVO_CONFIG
names, such as `port: 9000`, flat or under the names of the groups above. The command line comes first, then the
environment, then the file."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name what was probably meant."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, usage=f"{prog} {usage}", description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {' '.join(message.split())}\n")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses a command line, or ends the process with a line about what is wrong with it."""
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._explain(unknown[0].partition("=")[0]))
        return known

    def _explain(self, name: str) -> str:
        see = f"`{self.prog} --help` shows what there is"
        if not name.startswith("-"):
            return f"unexpected argument {name!r}; {see}"
        return f"unknown option {name}; {hint(name, list(self._option_string_actions), see)}"


def add_server_options(parser: Parser) -> None:
    """Adds every option of ``octavo serve``; none of them has a default, so that one can tell what was given."""
    model = all_options()["model"]
    parser.epilog = _SOURCES
    parser.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=f"{model.help} (default: {model.default})"
    )
    parser.add_argument("--config", metavar="FILE", help="a file of options: YAML, TOML or JSON, as its name says")
    for section, cls in sections().items():
        group = parser.add_argument_group(section, (cls.__doc__ or "").strip())
        for option in all_options().values():
            if option.section == section and option is not model:
                _add(group, option)


def settings_of(parser: Parser, arguments: argparse.Namespace) -> tuple[Settings, EngineConfig, ServerConfig]:
    """What the command line, the environment and the file set; ends the process if they are at fault."""
    values = vars(arguments)
    flags = {key: values[key] for key in all_options() if key in values}
    try:
        settings = read_settings(flags, os.environ, arguments.config)
        return settings, *settings.configs()
    except ConfigError as error:
        parser.error(str(error))


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    default = f" (default: {option.default_in_words})" if option.default_in_words else ""
    common: dict[str, Any] = {
        "dest": option.key,
        "default": argparse.SUPPRESS,
        "help": f"{option.help}{default}".replace("%", "%%"),
    }
    if option.is_switch:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
    else:
        common["metavar"] = option.key.rsplit("-", 1)[-1].upper() if option.choices is None else None
        group.add_argument(option.flag, type=value(option.parse), choices=option.choices, **common)


def value(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of options as argparse wants it."""

    def parse_value(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_value
