"""The ``octavo`` command.

    octavo serve [MODEL] [options]      serves a model over HTTP
    octavo --version

The options are the fields of the config classes; `octavo.config` says what each one means.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field
from importlib.metadata import version
from typing import Any, NoReturn

from octavo.config import DEFAULT_MODEL, EngineConfig, ServerConfig, flag_of, options, take_known
from octavo.errors import ConfigError, SetupError
from octavo.server.console import Narrator
from octavo.server.serve import serve

USAGE_ERROR = 2
SETUP_ERROR = 1


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and exits: 0 after a clean end, 1 if the set-up is at fault, 2 if the command line is."""
    parser = _parser()
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_explain_unknown(unknown[0]))
    values = vars(known)
    values.pop("command")
    try:
        server_config = take_known(ServerConfig, values)
        engine_config = EngineConfig.of(**values)
    except ConfigError as error:
        parser.error(str(error))
    narrator = Narrator()
    try:
        sys.exit(serve(engine_config, server_config, narrator))
    except SetupError as error:
        narrator.failure(error)
        sys.exit(SETUP_ERROR)
    except KeyboardInterrupt:
        sys.exit(128 + 2)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message}\n")


def _explain_unknown(argument: str) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {name!r}; `octavo serve --help` shows what there is"
    near = difflib.get_close_matches(name, _serve_flags(), n=1)
    hint = f"did you mean {near[0]}?" if near else "`octavo serve --help` lists the known ones"
    return f"unknown option {name}; {hint}"


def _parser() -> _Parser:
    parser = _Parser(prog="octavo", description="Serves language models from a pool of KV blocks.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"octavo {version('octavo')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve_parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        usage="octavo serve [MODEL] [options]",
        description="Serves a model over an OpenAI-compatible HTTP interface.",
        allow_abbrev=False,
    )
    serve_parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"a folder, a GGUF file, a Hub id or a built-in name (default: {DEFAULT_MODEL})",
    )
    for name, section in _sections().items():
        group = serve_parser.add_argument_group(name, (section.__doc__ or "").strip())
        for spec in options(section):
            _add_option(group, section, spec)
    return parser


def _sections() -> dict[str, type]:
    return {**EngineConfig.sections(), "server": ServerConfig}


def _serve_flags() -> list[str]:
    return [flag_of(section, spec.name) for section in _sections().values() for spec in options(section)]


def _add_option(group: argparse._ArgumentGroup, section: type, spec: Field[Any]) -> None:
    flag, help = flag_of(section, spec.name), spec.metadata["help"].replace("%", "%%")
    if spec.default is not None:
        help = f"{help} (default: {spec.default})"
    # Only what was given is passed on, so that the config classes alone know the defaults.
    common: dict[str, Any] = {"dest": spec.name, "default": argparse.SUPPRESS, "help": help}
    if isinstance(spec.default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    else:
        group.add_argument(flag, type=_value(spec.metadata["parse"]), choices=spec.metadata["choices"], **common)


def _value(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse_value(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_value
