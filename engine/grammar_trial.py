"""Tries grammars out in a process of its own, which ends itself over one that takes too long.

llguidance bounds what a compiled grammar may cost, but not how long it takes to build one: for a regular expression
of 64 KB that was seen to be minutes, and nothing in the same process can stop it.

    engine ── length, grammar ──►  trial: compiles it, and a SIGALRM is on its way meanwhile
           ◄── length, error ───   (empty: it is fine); or nothing any more
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO

from octavo.engine.grammar_compiler import GrammarTokenizer, compiled
from octavo.errors import InvalidRequestError

MAX_COMPILE_SECONDS = 5

_LENGTH = struct.Struct("<I")


class GrammarTrial:
    """The engine's side.

    Args:
        tokenizer: The model's. The process is started when the first grammar comes, and after one that ended it.
    """

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def check(self, grammar: str) -> None:
        """Compiles a grammar over there.

        Raises:
            InvalidRequestError: It is none, or takes too long.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
                self._end = weakref.finalize(self, _end, self._process)
            error = _ask(self._process, grammar)
            if error is None:
                self._end()
                error = f"what the answer must follow takes more than {MAX_COMPILE_SECONDS} s to compile"
        if error:
            raise InvalidRequestError(error)

    def _start(self) -> subprocess.Popen[bytes]:
        facts = [str(self._tokenizer.folder), self._tokenizer.vocab_size, list(self._tokenizer.eos_token_ids)]
        command = [sys.executable, "-m", "octavo.engine.grammar_trial", json.dumps(facts), str(MAX_COMPILE_SECONDS)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(process: subprocess.Popen[bytes], grammar: str) -> str | None:
    """What is wrong with a grammar; None if the process did not live to tell."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _send(process.stdin, grammar)
        return _receive(process.stdout)
    except BrokenPipeError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(BrokenPipeError), process:  # closes the pipes and waits
        pass


def _send(stream: IO[bytes], text: str) -> None:
    data = text.encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> str | None:
    head = stream.read(_LENGTH.size)
    return stream.read(*_LENGTH.unpack(head)).decode() if len(head) == _LENGTH.size else None


def main(facts: str, seconds: str) -> None:
    """The other side: answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the engine, which drains
    folder, vocab_size, eos_token_ids = json.loads(facts)
    source, tokenizer = GrammarTokenizer(Path(folder), vocab_size, eos_token_ids), None
    while (grammar := _receive(sys.stdin.buffer)) is not None:
        try:
            tokenizer = tokenizer or source.load()
            signal.alarm(int(seconds))
            compiled(tokenizer, grammar)
            error = ""
        except InvalidRequestError as refusal:
            error = str(refusal)
        signal.alarm(0)
        _send(sys.stdout.buffer, error)


if __name__ == "__main__":
    main(*sys.argv[1:])
