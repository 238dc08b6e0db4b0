"""Bounds on what one request may ask of the front end. All of them are checked before any work is queued."""

from __future__ import annotations

from typing import Final

MAX_HEADER_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
HEADER_SECONDS: Final = 10.0  # from the first byte, or the accepted connection, to the last header
BODY_SECONDS: Final = 30.0  # from the last header to the last byte of the body
KEEP_ALIVE_SECONDS: Final = 30
MAX_CONNECTIONS: Final = 4096

MAX_JSON_DEPTH: Final = 32
MAX_SEQUENCES: Final = 1024  # prompts × n of one request
MAX_PRIORITY: Final = 1_000_000
MAX_INPUTS: Final = 2048  # of one request for embeddings
MAX_MESSAGES: Final = 4096
MAX_PIN_SECONDS: Final = 24 * 3600.0  # a pin takes from everybody else, so whoever wants it longer has to ask again
MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 256
MAX_ALLOWED_TOKEN_IDS: Final = 4096
MAX_BAD_WORDS: Final = 64
MAX_BAD_WORD_CHARS: Final = 256
MAX_COMPLETION_LOGPROBS: Final = 5
MAX_CACHE_SALT_CHARS: Final = 256
MAX_GRAMMAR_BYTES: Final = 64 * 1024
MAX_SCHEMA_DEPTH: Final = 16
MAX_CHOICES: Final = 1024
MAX_METADATA_PAIRS: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_VALUE_CHARS: Final = 512
MAX_STORED_RESPONSES: Final = 1024  # of each tenant, as the next one
MAX_STORED_BYTES: Final = 32 * 1024 * 1024
MAX_ENDED_REQUESTS: Final = 4096  # of the engine, by whose names their ends are found; it knows the stories of fewer
MAX_EXPLAINED: Final = 32  # prompts of one request whose stories are told
MAX_LISTED_REQUESTS: Final = 256

INLINE_BYTES: Final = 8 * 1024  # larger inputs are parsed, templated and tokenized off the event loop
HEARTBEAT_SECONDS: Final = 15.0  # a silent stream sends a comment this often
SLOW_READER_SECONDS: Final = 30.0  # a stream that cannot be written to for so long is given up

MAX_IDLE_REQUEST_LINES: Final = 20  # in the log each second, of requests for which nothing was computed
MAX_PENDING_SPANS: Final = 1024  # of ended requests whose story the engine is being asked for
MAX_QUEUED_SPANS: Final = 2048  # that wait for the collector
MAX_SPANS_AT_ONCE: Final = 512  # that the collector gets in one request
SPAN_SECONDS: Final = 2.0  # that spans are collected before they are sent
MAX_TOLD_STORIES: Final = 8  # in one span, of a request with many prompts
STORY_SECONDS: Final = 5.0  # for the engine to tell one
LAST_SPANS_SECONDS: Final = 3.0  # that stopping waits for the collector

MAX_LIVE_VIEWERS: Final = 8  # of the live map
MAX_LIVE_BEHIND: Final = 8  # messages that wait for one of them; one that is further behind is told everything anew
MAX_LIVE_PREEMPTIONS: Final = 64  # the latest, which a new viewer is told of
LIVE_INTERVAL_SECONDS: Final = 0.25  # at least, between two looks at the engine
LIVE_SHARE: Final = 0.01  # of its time, and of the front end's, at most
LIVE_STATUS_SECONDS: Final = 0.5  # how soon viewers learn that the engine is silent
LIVE_CELLS: Final = 131_072  # of each tier; a larger one shows several blocks as one
MAX_BLOCK_ID: Final = 2**31 - 1
