"""Bounds on what one request may ask of the front end. All of them are checked before any work is queued."""

from __future__ import annotations

from typing import Final

MAX_HEADER_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
HEADER_SECONDS: Final = 10.0  # from the first byte, or the accepted connection, to the last header
BODY_SECONDS: Final = 30.0  # from the last header to the last byte of the body
KEEP_ALIVE_SECONDS: Final = 30

MAX_JSON_DEPTH: Final = 32
MAX_SEQUENCES: Final = 1024  # prompts × n of one request
MAX_PRIORITY: Final = 1_000_000
MAX_MESSAGES: Final = 4096
MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 256
MAX_CACHE_SALT_CHARS: Final = 256

INLINE_BYTES: Final = 8 * 1024  # larger inputs are parsed, templated and tokenized off the event loop
HEARTBEAT_SECONDS: Final = 15.0  # a silent stream sends a comment this often
SLOW_READER_SECONDS: Final = 30.0  # a stream that cannot be written to for so long is given up
