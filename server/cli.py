"""The ``octavo`` command.

    octavo serve [MODEL] [options]      serves a model over HTTP
    octavo chat [PROMPT] [options]      talks to a served model
    octavo top [options]                shows a server's pool, its requests and why they wait
    octavo doctor [MODEL] [options]     says whether and how `octavo serve` would work here
    octavo key [--tenant NAME]          makes an API key
    octavo --version

Each command is a module of `octavo.server.commands`, which is loaded when it is called for.
"""

from __future__ import annotations

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from octavo.errors import SetupError
from octavo.server.arguments import INTERRUPTED, SETUP_ERROR, USAGE_ERROR, Parser
from octavo.server.console import Narrator
from octavo.server.options import hint

BROKEN_PIPE = 128 + 13

COMMANDS = ("serve", "chat", "top", "doctor", "key")
_NAMES = ", ".join(COMMANDS)

_HELP = """\
commands:
  serve    serve a model over HTTP
  chat     talk to a served model, here in the terminal
  top      show a server's pool, its requests and why they wait
  doctor   say whether and how `octavo serve` would work on this machine
  key      make an API key

`octavo COMMAND --help` shows the options of each. To begin:

  octavo serve                           in one terminal, and in another:
  octavo chat "What is a KV cache?"
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 after a clean end, 1 if the set-up is at fault, 2 if the command line is."""
    command, *arguments = _checked(sys.argv[1:] if argv is None else argv)
    try:
        status = import_module(f"octavo.server.commands.{command}").main(arguments)
        sys.stdout.flush()
    except SetupError as error:
        Narrator().failure(error)
        status = SETUP_ERROR
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more; Python would complain about that once again while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    sys.exit(status)


def _checked(arguments: Sequence[str]) -> Sequence[str]:
    """A command and its arguments; ends the process if there is none."""
    if arguments and arguments[0] in COMMANDS:
        return arguments
    parser = Parser("octavo", "COMMAND [options]", "Serves language models from a pool of KV blocks.", _HELP)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"octavo {version('octavo')}")
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(USAGE_ERROR)
    first = arguments[0]
    if first.startswith("-"):
        parser.parse([first])
        parser.error("a command is missing")
    parser.error(f"there is no command {first!r}; {hint(first, list(COMMANDS), f'try one of {_NAMES}')}")
