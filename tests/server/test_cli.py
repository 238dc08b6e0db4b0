"""The octavo command: its options, its errors, its exit statuses, and what it loads."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from api_keys import ADA, bearer
from tiny_tokenizer import write_tokenizer

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError, SetupError
from octavo.server import cli
from octavo.server.arguments import USAGE_ERROR
from octavo.server.commands import serve as serve_command
from octavo.server.console import Narrator
from octavo.server.keys import Identity, read_keys
from octavo.server.serve import address_of, allow_descriptors, bind, serve

# A server whose engine is the tests' fake.
SERVE_FAKE = """
import os
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import octavo.engine.client, octavo.engine.prepare
from fake_engine import FakeEngine
octavo.engine.prepare.prepare_model = lambda config, progress: (
    octavo.engine.prepare.PreparedModel(Path(sys.argv[2]), config.model.model))
def client(config, model, **logs):
    if "OCTAVO_API_KEY" not in os.environ:  # which the engine's process would inherit
        print("OCTAVO_API_KEY is gone")
    engine = FakeEngine()
    engine.delay = 0.05
    return engine
octavo.engine.client.ProcessEngineClient = client
from octavo.server.cli import main
main(["serve", "tiny", "--port", "0", *sys.argv[3:]])
"""


def serve_fake(folder: Path, tests_folder: Path, *options: str) -> list[str]:
    """The command that runs it."""
    return [sys.executable, "-c", SERVE_FAKE, str(tests_folder / "support"), str(write_tokenizer(folder)), *options]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineConfig, ServerConfig]]:
    """What `serve` is called with."""
    calls: list[tuple[EngineConfig, ServerConfig]] = []

    def serve(engine: EngineConfig, server: ServerConfig, narrator: object) -> int:
        calls.append((engine, server))
        return 0

    monkeypatch.setattr(serve_command, "serve", serve)
    return calls


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_options_reach_their_sections(served: list[tuple[EngineConfig, ServerConfig]]) -> None:
    arguments = "--block-size 32 --kv-cache-memory 1GiB --no-prefix-caching --max-model-len 4k --port 0 --device cpu"
    assert run("serve", "some/model", *arguments.split()) == 0
    engine, server = served[0]
    assert engine == EngineConfig.of(
        model="some/model", block_size=32, memory=2**30, prefix_caching=False, max_model_len=4096, device="cpu"
    )
    assert server == ServerConfig(port=0)


def test_tiers_are_given_in_bytes(served: list[tuple[EngineConfig, ServerConfig]]) -> None:
    arguments = "--swap-space 4GiB --swap-dir /mnt/kv --swap-disk 20GB"
    assert run("serve", *arguments.split()) == 0
    assert served[0][0] == EngineConfig.of(swap_space=4 * 2**30, swap_dir="/mnt/kv", swap_disk=20 * 10**9)


def test_without_options_the_config_classes_know_the_defaults(served: list[tuple[EngineConfig, ServerConfig]]) -> None:
    assert run("serve") == 0
    assert served == [(EngineConfig(), ServerConfig())]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--blok-size", "3"], "did you mean --block-size?"),
        (["serve", "--colour=red"], "unknown option --colour"),
        (["serve", "a", "b"], "unexpected argument 'b'"),
        (["serve", "--dtype", "int3"], "float32"),
        (["serve", "--port", "http"], "not a whole number"),
        (["serve", "--port", "99999"], "between 0 and 65535"),
        (["serve", "--block-size", "0"], "--block-size must be at least 1"),
        (["serve", "--kv-cache-memory", "lots"], "write it as 2GiB"),
        (["serve", "--swap-space", "-1"], "--swap-space"),
        (["serve", "--swap-disk", "1GiB"], "--swap-disk 1073741824 needs a folder"),
        (["serve", "--port"], "expected one argument"),
        (["serve", "--tls-cert", "cert.pem"], "--tls-cert and --tls-key belong together"),
        (["key", "--tenant", "a b"], "'a b' is not"),
        (["serve", "--config"], "expected one argument"),
        (["serve", "--config", "none.yaml"], "none.yaml: there is no such file"),
        (["sevre"], "there is no command 'sevre'; did you mean serve?"),
        (["fly"], "try one of serve, chat, top, doctor, key"),
        (["--prot", "1"], "unknown option --prot"),
        (["chat", "--modle", "a"], "did you mean --model?"),
        (["chat", "a", "b"], "unexpected argument 'b'"),
        (["chat", "--temperature", "hot"], "'hot' is not a number"),
        (["doctor", "--jsno"], "did you mean --json?"),
        (["doctor", "--port", "http"], "not a whole number"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == USAGE_ERROR
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_help_shows_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--block-size",
        "(default: 16)",
        "--port",
        "(default: 8000)",
        "--no-prefix-caching",
        "{auto,cpu,cuda}",
        "(default: 8 MiB)",
        "OCTAVO_PORT=9000",
        "--config FILE",
    ):
        assert words in text


def test_a_key_is_shown_once_and_its_line_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("key", "--tenant", "ada", "--admin") == 0
    shown = capsys.readouterr()
    (tmp_path / "keys").write_text(shown.out)
    keys = read_keys(str(tmp_path / "keys"), None, {"ada"})
    key = re.search(r"sk-octavo-\S+", shown.err)
    assert key is not None
    assert keys is not None
    assert keys.identify(key[0].encode()) == Identity("ada", admin=True)
    assert key[0] not in shown.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ServerConfig(host="0.0.0.0"), "--allow-anonymous"),
        (ServerConfig(api_keys="/no/such/keys"), "cannot read /no/such/keys"),
        (ServerConfig(tls_cert="/no/such/cert", tls_key="/no/such/key"), "cannot read /no/such/cert"),
    ],
)
def test_what_would_open_the_server_is_told_before_anything_is_loaded(options: ServerConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(EngineConfig.of(model="/no/such/model"), options, Narrator())


def test_a_value_comes_from_where_it_is_given_first(
    served: list[tuple[EngineConfig, ServerConfig]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "octavo.toml"
    file.write_text('model = "from/file"\nblock-size = 8\nlog_level = "error"\n[server]\nport = 1\n')
    monkeypatch.setenv("OCTAVO_BLOCK_SIZE", "32")
    monkeypatch.setenv("OCTAVO_PORT", "2")
    assert run("serve", "--config", str(file), "--port", "3") == 0
    assert served == [(EngineConfig.of(model="from/file", block_size=32), ServerConfig(port=3, log_level="error"))]
    assert run("serve", "of/mine", "--config", str(file)) == 0
    assert served[1] == (EngineConfig.of(model="of/mine", block_size=32), ServerConfig(port=2, log_level="error"))


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == USAGE_ERROR
    usage = capsys.readouterr().err
    assert run("--help") == 0
    assert usage == capsys.readouterr().out
    assert all(f"\n  {command} " in usage for command in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("octavo ")


def test_setup_errors_are_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> int:
        raise SetupError("no [such] model; choose another --port")

    monkeypatch.setattr(serve_command, "serve", fail)
    monkeypatch.setenv("OCTAVO_PORT", "9000")
    assert run("serve") == cli.SETUP_ERROR
    assert capsys.readouterr().err == "error: no [such] model; choose another OCTAVO_PORT\n"


def test_a_port_in_use_is_told_at_once() -> None:
    with bind(ServerConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(SetupError, match=f"127.0.0.1:{port} is already in use"):
            bind(ServerConfig(port=port))
        assert time.monotonic() - began < 1
    with bind(ServerConfig(port=port)) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("before", "after"),
    [((1024, 65536), (8192, 65536)), ((1024, 4096), (4096, 4096)), ((1024, -1), (8192, -1)), ((20_000, -1), None),
     ((-1, -1), None)],
)  # fmt: skip
def test_room_for_connections(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int] | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: before)
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    allow_descriptors(8192)
    assert asked == ([] if after is None else [after])


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(SetupError, match=r"cannot listen on 203\.0\.113\.1:0"):
        bind(ServerConfig(host="203.0.113.1", port=0))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_ipv6_address() -> None:
    try:
        with bind(ServerConfig(host="::1", port=0)) as listener:
            assert address_of(listener).startswith("http://[::1]:")
    except SetupError:
        pytest.skip("no IPv6 here")


def test_the_http_process_loads_no_torch_and_stays_small() -> None:
    script = """
import sys
from pathlib import Path
import octavo.server.app, octavo.server.cli, octavo.server.commands.serve
import octavo.engine.client, octavo.engine.prepare, octavo.engine.tokenizer
heavy = {"torch", "transformers", "numba", "triton", "safetensors"} & sys.modules.keys()
assert not heavy, heavy
# Not getrusage: what it reports survives exec, and so includes this test's parent.
status = Path("/proc/self/status").read_text().split()
peak = int(status[status.index("VmHWM:") + 1]) // 1024
assert peak < 250, f"{peak} MiB"
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_keys_and_a_certificate(tmp_path: Path, tests_folder: Path, certificate: tuple[str, str]) -> None:
    options = ["--tls-cert", certificate[0], "--tls-key", certificate[1], "--tenants", "ada"]
    command = serve_fake(tmp_path, tests_folder, *options)
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OCTAVO_API_KEY": f"{ADA}=ada"}
    trust = ssl.create_default_context(cafile=certificate[0])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if line.startswith("ready after"):
                break
        address = said[-1].split()[-1]
        assert address.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=address, verify=trust) as http:
            assert http.get("/v1/models").status_code == 401
            assert http.get("/v1/models", headers=bearer(ADA)).status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 0
        said.append(server.stdout.read())
    assert "API keys: 1, of ada" in "".join(said)
    assert "authorization: Bearer" in said[-1]
    assert "OCTAVO_API_KEY is gone" in "".join(said)
    assert ADA not in "".join(said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_well(tmp_path: Path, tests_folder: Path, number: signal.Signals) -> None:
    command = serve_fake(tmp_path, tests_folder)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        ready = next(line for line in server.stdout if line.startswith("ready after"))
        address = ready.split()[-1]
        body = {"prompt": [5, 6], "max_tokens": 12, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(number)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait(timeout=10) == 0
        assert "curl" in server.stdout.read()
        assert all(" INFO octavo.request: POST " in line for line in server.stderr.read().splitlines())
