"""`octavo chat` as a process, against the front end on a fake engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from fake_engine import FakeEngine
from terminal import Terminal

from octavo.engine.messages import unpacked
from octavo.engine.tokenizer import Tokenizer
from octavo.server.cli import BROKEN_PIPE

COMMAND = (sys.executable, "-m", "octavo", "chat")


@pytest.fixture
def environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("OPENAI", "OCTAVO", "NO_COLOR"))}
    return kept | {"TERM": "xterm", "INPUTRC": os.devnull}


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command with something piped in, or nothing."""

    def run_command(*arguments: str, piped: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=piped,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environment | variables,
        )

    return run_command


@pytest.fixture
def terminal(environment: dict[str, str], url: str) -> Iterator[Terminal]:
    """A conversation, at its first prompt."""
    command = [*COMMAND, "--url", f"{url}/v1", "--max-tokens", "100", "--temperature", "0"]
    with Terminal(command, environment) as opened:
        opened.expect("tiny at http.*/help")
        opened.expect("> ")
        yield opened


def say(engine: FakeEngine, tokenizer: Tokenizer, text: str) -> None:
    engine.script = tokenizer.encode(text)


def prompts(engine: FakeEngine, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(unpacked(request.prompt)) for request in engine.seen]


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_one_answer(run: Run, url: str, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    say(engine, tokenizer, "Größe \x1b[31m是 done")
    engine.cached_tokens = 16
    done = run("Hello?", "--url", f"{url}/v1", "--system", "Be brief.", "--temperature", "0.5", "--max-tokens", "64")
    assert (done.returncode, done.stdout) == (0, "Größe [31m是 done\n")
    assert "tokens/s · first token after" in done.stderr
    assert "16 prompt tokens cached" in done.stderr
    assert prompts(engine, tokenizer) == ["system\nBe brief.\nuser\nHello?\nassistant\n"]
    assert (engine.seen[0].sampling.temperature, engine.seen[0].sampling.max_tokens) == (0.5, 64)


def test_what_is_piped_in_is_the_prompt(run: Run, url: str, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    say(engine, tokenizer, "yes")
    done = run("--url", f"{url}/v1", piped="two\nlines\n")
    assert (done.returncode, done.stdout) == (0, "yes\n")
    assert prompts(engine, tokenizer) == ["user\ntwo\nlines\nassistant\n"]


def test_errors_are_one_line(run: Run, url: str, engine: FakeEngine) -> None:
    cases = {
        ("hi", "--url", f"{url}/v1", "--model", "nope"): "the model 'nope' does not exist",
        ("hi", "--url", f"{url}/v1", "--temperature", "9"): "temperature must be a number from 0.0 to 2.0",
        ("hi", "--url", url): "most endpoints end in /v1",
        ("hi", "--url", "http://127.0.0.1:1/v1"): "start a server with `octavo serve`",
        ("hi", "--url", "nowhere"): "'nowhere' is not an address",
        ("--url", f"{url}/v1"): "there is no prompt",
        ("hi", "--url", f"{url}/v1", "--api-key", "ü"): "the API key has characters",
    }
    for arguments, words in cases.items():
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    engine.error = "out of [luck]"
    done = run("hi", "--url", f"{url}/v1", "--max-tokens", "9")
    assert done.returncode == 1
    assert done.stderr.endswith("out of [luck]\n")


def test_nobody_reads(url: str, environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*COMMAND, "hi", "--url", f"{url}/v1", "--max-tokens", "9"]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


def test_a_conversation(terminal: Terminal, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    say(engine, tokenizer, "Aye.")
    terminal.type("first\n")
    terminal.expect(r"Aye\.\r\n.*tokens/s")
    terminal.expect("> ")
    terminal.type("/system Be a pirate.\n")
    terminal.expect("is set")
    terminal.type("second\n")
    terminal.expect(r"Aye\.\r\n.*tokens/s")
    terminal.type("/reset\n")
    terminal.expect("forgotten")
    terminal.type("third\n")
    terminal.expect(r"Aye\.\r\n.*tokens/s")
    terminal.type("/system\n")
    terminal.expect("no system prompt")
    terminal.type("/rest\n")
    terminal.expect("did you mean /reset?")
    terminal.type("/exit\n")
    assert terminal.wait() == 0
    assert prompts(engine, tokenizer) == [
        "user\nfirst\nassistant\n",
        "system\nBe a pirate.\nuser\nfirst\nassistant\nAye.\nuser\nsecond\nassistant\n",
        "system\nBe a pirate.\nuser\nthird\nassistant\n",
    ]


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(
    terminal: Terminal, engine: FakeEngine, tokenizer: Tokenizer, wait_until: Callable[..., float]
) -> None:
    engine.script, engine.delay = tokenizer.encode("la ") * 60, 0.1
    terminal.type("sing\n")
    terminal.expect("la la ")
    terminal.type("\x03")
    terminal.expect("stopped")
    wait_until(lambda: not engine.open)
    terminal.expect("> ")
    say(engine, tokenizer, "Bye.")
    terminal.type("enough")
    terminal.expect("enough")
    time.sleep(0.2)  # Python's readline does not notice a signal between its echo and its wait for the next key
    terminal.type("\x03")  # at the prompt it empties the line
    terminal.expect("> ")
    terminal.type("thanks\n")
    terminal.expect(r"Bye\.")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    first, second = prompts(engine, tokenizer)
    assert first == "user\nsing\nassistant\n"
    # What it had said is remembered; what was typed and taken back is not.
    assert second.startswith("user\nsing\nassistant\nla la ")
    assert second.endswith("user\nthanks\nassistant\n")
    assert "enough" not in second
    assert "Traceback" not in terminal.seen


def test_a_conversation_survives_an_error(terminal: Terminal, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.error = "bad luck"
    terminal.type("one\n")
    terminal.expect("error:.*bad luck")
    terminal.expect("> ")
    engine.error = None
    say(engine, tokenizer, "Fine.")
    terminal.type("two\n")
    terminal.expect(r"Fine\.")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert prompts(engine, tokenizer)[-1] == "user\ntwo\nassistant\n"
