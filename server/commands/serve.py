"""``octavo serve``: serves a model over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.errors import SetupError
from octavo.logs import set_up
from octavo.server.arguments import SETUP_ERROR, Parser, add_server_options, settings_of
from octavo.server.console import narrator_of
from octavo.server.serve import serve


def main(arguments: Sequence[str]) -> int:
    """Serves until asked to stop; returns the exit status. What is wrong is told in the words of whoever set it."""
    parser = Parser("octavo serve", "[MODEL] [options]", "Serves a model over an OpenAI-compatible HTTP interface.")
    add_server_options(parser)
    settings, engine, server = settings_of(parser, parser.parse(arguments))
    set_up(server.log_format, server.log_level, "server")
    narrator = narrator_of(server.log_format)
    try:
        return serve(engine, server, narrator)
    except SetupError as error:
        narrator.failure(SetupError(settings.in_their_words(str(error))))
        return SETUP_ERROR
