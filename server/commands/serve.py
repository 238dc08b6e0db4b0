"""``octavo serve``: serves a model over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.errors import SetupError
from octavo.server.arguments import Parser, add_server_options, settings_of
from octavo.server.console import Narrator
from octavo.server.serve import serve


def main(arguments: Sequence[str]) -> int:
    """Serves until asked to stop; returns the exit status.

    Raises:
        SetupError: The model cannot be served; in the words of whoever set the option at fault.
    """
    parser = Parser("octavo serve", "[MODEL] [options]", "Serves a model over an OpenAI-compatible HTTP interface.")
    add_server_options(parser)
    settings, engine, server = settings_of(parser, parser.parse(arguments))
    try:
        return serve(engine, server, Narrator())
    except SetupError as error:
        raise SetupError(settings.in_their_words(str(error))) from error
