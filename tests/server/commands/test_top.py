"""`octavo top` against servers that say what a test tells them to, and as a process against the front end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_keys import ADA, ADMIN, some_keys
from fake_engine import FakeEngine
from terminal import Terminal

from octavo.server.arguments import USAGE_ERROR
from octavo.server.commands import top
from octavo.server.keys import Keys
from octavo.server.top.frame import MOST_STORIES

METRICS = """\
octavo_ready 1.0
octavo_build_info{version="0.1.0",python="3.13"} 1.0
octavo_kv_blocks{tier="host",state="used"} 10.0
octavo_kv_blocks{tier="host",state="free"} 30.0
octavo_kv_blocks{tier="device",state="used"} 24.0
octavo_kv_blocks{tier="device",state="pinned"} 1.0
octavo_kv_blocks{tier="device",state="cached"} 23.0
octavo_kv_blocks{tier="device",state="free"} 0.0
octavo_requests{state="running"} 2.0
octavo_requests{state="waiting"} 3.0
octavo_requests{state="swapped"} 1.0
octavo_requests_waiting{reason="blocks"} 3.0
octavo_requests_waiting{reason="new_in_a_later_version"} 1.0
octavo_requests_waiting{reason="behind"} 0.0
octavo_tokens_total{kind="prompt"} 1000.0
octavo_tokens_total{kind="generated"} 500.0
octavo_prefix_cache_tokens_total{result="hit_device"} 60.0
octavo_prefix_cache_tokens_total{result="miss"} 40.0
octavo_preemptions_total{method="swap",reason="growth"} 2.0
octavo_preemptions_total{method="swap",reason="priority"} 1.0
"""
CARDS = {"data": [{"id": "chatcmpl-1", "age": 2.5}, {"id": "mine", "age": 0.5}, {"id": "gone", "age": 9.0}], "total": 3}


def told(id: str, **values: Any) -> dict[str, Any]:
    story = {"id": id, "state": "running", "prompt_tokens": 640, "cached_tokens": 512, "summary": "all is well"}
    return story | {"prompts": [prompt()]} | values


def prompt(*moments: tuple[float, str, str], wait: str | None = None) -> dict[str, Any]:
    timeline = [{"at": at, "kind": kind, "text": text} for at, kind, text in moments]
    return {"seconds": 2.5, "timeline": timeline, "wait": None if wait is None else {"text": wait}}


STORIES = {
    "chatcmpl-1": told("chatcmpl-1", prompts=[prompt((0.5, "preempted", "gave way, cost 9 ms"), (1, "failed", "f"))]),
    "mine": told("mine", state="waiting", prompts=[prompt(wait="waits: 4 blocks are missing")]),
}


class Scripted:
    """Answers what it is told to.

    Attributes:
        answers: (status, content) by path. seen: the requests.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {"/metrics": (200, METRICS), "/v1/requests": (200, CARDS)}
        self.answers |= {f"/v1/requests/{id}": (200, story) for id, story in STORIES.items()}
        self.seen: list[httpx.Request] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        status, content = self.answers.get(request.url.path, (404, {"error": {"message": "no"}}))
        return httpx.Response(status, **{"text" if isinstance(content, str) else "json": content})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted, real = Scripted(), httpx.Client
    monkeypatch.setattr(
        httpx, "Client", lambda **options: real(**options, transport=httpx.MockTransport(scripted.answer))
    )
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return scripted


Output = pytest.CaptureFixture[str]


def once(capsys: Output, *arguments: str) -> tuple[int, str, str]:
    status = top.main(["--once", *arguments])
    return status, *capsys.readouterr()


def line(text: str, begin: str) -> str:
    return next(line.rstrip() for line in text.splitlines() if line.startswith(begin))


def test_a_frame(server: Scripted, capsys: Output) -> None:
    status, out, err = once(capsys)
    assert (status, err) == (0, "")
    assert line(out, "octavo top").split() == ["octavo", "top", "http://127.0.0.1:8000", "version", "0.1.0", "ready"]
    device, host = line(out, "device"), line(out, "host")
    assert out.index(device) < out.index(host)
    assert device.endswith("used 24  pinned 1  cached 23  free 0  of 48 blocks")
    assert (device.count("█"), device.count("▓"), device.count("▒"), device.count("░")) == (24, 1, 23, 0)
    assert (host.count("█"), host.count("░")) == (12, 36)
    assert host.endswith("used 10  pinned –  cached –  free 30  of 40 blocks")
    assert line(out, "sequences").split() == ["sequences", "running", "2", "waiting", "3", "swapped", "1"]
    assert "          3 wait: too few blocks are available\n" in out
    assert "          1 wait: new_in_a_later_version\n" in out
    assert "others come first" not in out
    assert line(out, "tokens/s") == "tokens/s  generated –   prompts –   of prompts found in the cache 60%"
    assert line(out, "gave way") == "gave way  3 swapped out"
    assert line(out, "chatcmpl-1").split() == ["chatcmpl-1", "running", "2.50", "s", "640", "512", "all", "is", "well"]
    assert line(out, "mine").endswith("waits: 4 blocks are missing")
    assert line(out, "gone").split() == ["gone", "–", "9.00", "s", "–", "–", "–"]
    assert out.endswith("2.00 s ago  chatcmpl-1 gave way, cost 9 ms\n")


def test_what_is_missing_is_a_dash(server: Scripted, capsys: Output) -> None:
    server.answers["/metrics"] = (200, "# nothing\n")
    server.answers["/v1/requests"] = (200, {"data": [], "total": 0})
    status, out, _ = once(capsys)
    assert status == 0
    assert out.splitlines() == [
        "octavo top  http://127.0.0.1:8000  version –  –",
        "",
        "blocks    –",
        "",
        "sequences running –   waiting –   swapped –",
        "tokens/s  generated –   prompts –   of prompts found in the cache –",
        "gave way  –",
        "",
        "no open requests",
    ]


def test_a_key_that_is_not_an_administrators_shows_its_own_requests(server: Scripted, capsys: Output) -> None:
    server.answers["/metrics"] = (403, {"error": {"message": "no"}})
    status, out, _ = once(capsys, "--key", "sk-mine")
    assert status == 0
    assert "note: the pool and the speed are told to keys that are marked admin only" in out
    assert "waits: 4 blocks are missing" in out
    assert {request.headers["authorization"] for request in server.seen} == {"Bearer sk-mine"}


def test_the_key_may_come_from_the_environment(
    server: Scripted, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-variable")
    assert once(capsys, "--url", "http://octavo:1/v1/")[0] == 0
    assert server.seen[0].headers["authorization"] == "Bearer sk-variable"
    assert str(server.seen[0].url) == "http://octavo:1/metrics"


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/metrics", (401, {}), "asks for an API key that it knows; give one with --key, or in $OPENAI_API_KEY"),
        ("/metrics", (404, {}), "has no /metrics: it is no Octavo"),
        ("/metrics", (200, "<html>"), "/metrics does not answer as Octavo does"),
        ("/metrics", (500, "broken"), "answered with 500: broken"),
        ("/v1/requests", (404, {}), "has no /v1/requests"),
        ("/v1/requests", (200, {"data": 1}), "does not answer as Octavo does: data"),
        ("/v1/requests/mine", (200, []), "does not answer as Octavo does"),
    ],
)
def test_a_server_that_is_none_gets_one_line(
    server: Scripted, capsys: Output, path: str, answer: tuple[int, Any], words: str
) -> None:
    server.answers[path] = answer
    status, out, err = once(capsys)
    assert (status, out) == (1, "")
    assert words in err
    assert (err.startswith("error: "), err.count("\n")) == (True, 1)


def test_an_engine_that_is_not_ready_tells_no_stories(server: Scripted, capsys: Output) -> None:
    for id in STORIES:
        server.answers[f"/v1/requests/{id}"] = (503, {})
    status, out, _ = once(capsys)
    assert status == 0
    assert out.count("note: the engine tells no stories now: it is not ready") == 1


def test_names_and_texts_cannot_command_the_terminal(server: Scripted, capsys: Output) -> None:
    server.answers["/v1/requests"] = (200, {"data": [{"id": "a\x1b[31m[red]" + "x" * 40, "age": 1}], "total": 1})
    out = once(capsys)[1]
    assert "\x1b" not in out
    assert "a[31m[red]xxxxxxxxxxxxx…" in out


def test_of_many_requests_the_first_are_shown(server: Scripted, capsys: Output) -> None:
    cards = [{"id": f"r{number}", "age": 1.0, "tenant": "ada"} for number in range(MOST_STORIES + 1)]
    server.answers["/v1/requests"] = (200, {"data": cards, "total": 300})
    out = once(capsys)[1]
    assert "tenant" in line(out, "request ")
    assert f"r{MOST_STORIES - 1} " in out
    assert f"r{MOST_STORIES} " not in out
    assert f"… and {300 - MOST_STORIES} more" in out
    assert len(server.seen) == 2 + MOST_STORIES


def test_speed_is_measured_between_frames(server: Scripted, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.server.top import client as client_module
    from octavo.server.top.client import TopClient
    from octavo.server.top.frame import frame

    times = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(client_module.time, "monotonic", lambda: next(times))
    client = TopClient("http://octavo")
    first = client.read(0)
    server.answers["/metrics"] = (200, METRICS.replace("500.0", "600.0"))
    second = client.read(0)
    server.answers["/metrics"] = (200, METRICS.replace("500.0", "7.0"))
    restarted = client.read(0)
    console = top._console()
    console.print(frame(second, first, "u"), frame(restarted, second, "u"))
    out = capsys.readouterr().out
    assert "generated 50.0   prompts 0.0 " in out
    assert "generated –   prompts 0.0 " in out


@pytest.mark.parametrize("interval", ["0.1", "3601", "nan", "x"])
def test_an_interval_has_bounds(interval: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        top.main(["--interval", interval])
    assert ended.value.code == USAGE_ERROR
    assert "--interval" in capsys.readouterr().err


# ── as a process ──────────────────────────────────────────────────────────────────────────────────────────

COMMAND = (sys.executable, "-m", "octavo", "top")


@pytest.fixture
def keys() -> Keys:
    return some_keys()


@pytest.fixture
def environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("OPENAI", "OCTAVO", "NO_COLOR"))}
    return kept | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60, env=environment
    )


def test_a_file_gets_one_frame_whatever_its_encoding(url: str, environment: dict[str, str]) -> None:
    done = run(environment | {"PYTHONIOENCODING": "ascii"}, "--url", url, "--key", ADMIN)
    assert done.returncode == 0
    assert "===" in line(done.stdout, "device")
    assert "the output is no terminal" in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_and_addresses_that_do_not_work(url: str, environment: dict[str, str]) -> None:
    for arguments, words in (
        (("--url", url), "give one with --key"),
        (("--url", "http://127.0.0.1:1"), "start a server with `octavo serve`"),
        (("--url", "nowhere"), "'nowhere' is not an address"),
    ):
        done = run(environment, *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert words in done.stderr
    assert run(environment, "--url", url, "--key", ADA, "--once").returncode == 0


def test_frames_follow_each_other_until_ctrl_c(
    url: str, engine: FakeEngine, environment: dict[str, str], wait_until: Callable[..., float]
) -> None:
    with Terminal([*COMMAND, "--url", url, "--key", ADMIN, "--interval", "0.2"], environment) as terminal:
        terminal.expect("no open requests")
        terminal.expect(r"generated 0\.0")
        terminal.type("\x03")
        assert terminal.wait() == 0
    assert "Traceback" not in terminal.seen
