"""Which source sets an option, and in whose words it complains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig, ServerConfig, TenantConfig
from octavo.errors import ConfigError
from octavo.server.options import Option, all_options
from octavo.server.settings import OTHER_VARIABLES, read_settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("octavo.yaml")


def configs(environment: dict[str, str], file: Path | None = None, **flags: Any) -> tuple[EngineConfig, ServerConfig]:
    return read_settings(flags, environment, file and str(file)).configs()


def test_each_source_outranks_the_next(file: Path) -> None:
    file.write_text("port: 1\nhost: file\nserved-model-name: file\n")
    environment = {"OCTAVO_PORT": "2", "OCTAVO_HOST": "environment"}
    assert configs(environment, file, port=3)[1] == ServerConfig(port=3, host="environment", served_model_name="file")
    assert configs({}) == (EngineConfig(), ServerConfig())


def test_files_are_flat_or_grouped(file: Path) -> None:
    file.write_text(
        "model: {model: org/name, max_model_len: 4k}\ncache:\n  kv_cache_memory: 2GiB\n  prefix-caching: false\n"
        "execution:\nserver: {port: 9000}\nmax-num-seqs: 8\ntenants: [{name: chat, weight: 2}]\n"
    )
    assert configs({}, file) == (
        EngineConfig.of(
            model="org/name",
            max_model_len=4096,
            memory=2**31,
            prefix_caching=False,
            max_num_seqs=8,
            tenants=[TenantConfig(name="chat", weight=2)],
        ),
        ServerConfig(port=9000),
    )
    file.write_text("model: org/name")
    assert configs({}, file)[0] == EngineConfig.of(model="org/name")


@pytest.mark.parametrize("option", all_options().values(), ids=lambda option: option.key)
def test_every_option_can_come_from_the_environment(option: Option) -> None:
    switched = "no" if option.default else "yes"
    text = switched if option.is_switch else option.choices[-1] if option.choices else "7"
    (given,) = read_settings({}, {option.variable: text}).given.values()
    assert given.value == option.parse(text) != option.default


def test_a_variable_names_the_file(file: Path) -> None:
    file.write_text("port: 9000")
    assert configs({"OCTAVO_CONFIG": "octavo.yaml"})[1] == ServerConfig(port=9000)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *((variable, "1") for variable in sorted(OTHER_VARIABLES)),
        ("OCTAVO_PORT", ""),
        ("octavo_port", "1"),
        ("PORT", "1"),
        # What Kubernetes sets in every pod beside services called "octavo" and "octavo-chat".
        ("OCTAVO_PORT", "tcp://10.0.0.1:8000"),
        ("OCTAVO_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("OCTAVO_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("OCTAVO_SERVICE_HOST", "10.0.0.1"),
        ("OCTAVO_SERVICE_PORT_HTTP", "8000"),
        ("OCTAVO_CHAT_PORT", "udp://10.0.0.1:8000"),
        ("OCTAVO_CHAT_SERVICE_PORT", "8000"),
    ],
)
def test_variables_that_set_nothing(variable: str, text: str) -> None:
    assert configs({variable: text}) == (EngineConfig(), ServerConfig())


def test_our_other_variables_are_all_known() -> None:
    """A variable that the cache or a test begins to read must not keep a server from starting."""
    root = Path(__file__).parents[2]
    read = re.compile(r"""environ(?:\.get\(|\[)"(OCTAVO_\w+)""")
    folders = ("engine", "models", "kernels", "scheduler", "block_manager", "tests", "benchmarks")
    sources = [file.read_text() for folder in folders for file in (root / folder).rglob("*.py")]
    named = {name for source in sources for name in read.findall(source)}
    assert {"OCTAVO_CACHE", "OCTAVO_NIGHTLY"} <= named
    assert named <= OTHER_VARIABLES


@pytest.mark.parametrize(
    ("environment", "text", "words"),
    [
        ({"OCTAVO_PORT": "http"}, "", "OCTAVO_PORT: 'http' is not a whole number"),
        ({"OCTAVO_DTYPE": "int3"}, "", "OCTAVO_DTYPE: must be one of auto, float32, bfloat16, float16, not 'int3'"),
        ({"OCTAVO_PREFIX_CACHING": "on"}, "", "OCTAVO_PREFIX_CACHING: 'on' is neither true nor false"),
        ({"OCTAVO_PORT": "99999"}, "", "OCTAVO_PORT must lie between 0 and 65535, not 99999"),
        ({"OCTAVO_PROT": "9000"}, "", "unknown variable OCTAVO_PROT; did you mean OCTAVO_PORT?"),
        ({"OCTAVO_NIGHTLI": "1"}, "", "unknown variable OCTAVO_NIGHTLI; did you mean OCTAVO_NIGHTLY?"),
        ({"OCTAVO_ZEBRA": "1"}, "", "unknown variable OCTAVO_ZEBRA; `octavo serve --help`"),
        ({"OCTAVO_MEMORY": "1GiB"}, "", "unknown variable OCTAVO_MEMORY; did you mean"),
        ({}, "port: http", "octavo.yaml: port: 'http' is not a whole number"),
        ({}, "server: {port: http}", "octavo.yaml: server.port: 'http' is not a whole number"),
        ({}, "server: {port: 99999}", "octavo.yaml: server.port must lie between 0 and 65535, not 99999"),
        ({}, "prot: 1", "octavo.yaml: unknown option 'prot'; did you mean port?"),
        ({}, "server: {prot: 1}", "octavo.yaml: unknown option 'prot' in server; did you mean port?"),
        ({}, "1: 1", "octavo.yaml: unknown option '1'; `octavo serve --help`"),
        ({}, "zebra: {port: 1}", "octavo.yaml: unknown option 'zebra'"),
        ({}, "sever: {port: 1}", "octavo.yaml: unknown option 'sever'; did you mean server?"),
        ({}, "cache: {port: 1}", "octavo.yaml: cache.port: belongs to server"),
        ({}, "server: 8000", "octavo.yaml: server: is a group of options, not an option"),
        ({}, "port: {a: 1}", "octavo.yaml: port: takes one value"),
        ({}, "port: 1\nserver: {port: 2}", "octavo.yaml: port is given twice, as port and as server.port"),
        ({}, "max_num_seqs: 1\nmax-num-seqs: 2", "given twice, as max_num_seqs and as max-num-seqs"),
        ({}, "model: a\nmodel_: b", "unknown option 'model_'; did you mean model?"),
        ({}, "tenants: [{name: a, wait: 2}]", "octavo.yaml: tenants: .*unexpected keyword argument 'wait'"),
        (
            {"OCTAVO_NUM_BLOCKS": "8"},
            "kv_cache_memory: 1GiB",
            "octavo.yaml: OCTAVO_NUM_BLOCKS and kv_cache_memory both set the pool's size",
        ),
        ({"OCTAVO_SWAP_DISK": "8"}, "", "OCTAVO_SWAP_DISK 8 needs a folder to lie in; name it with --swap-dir"),
    ],
)
def test_complaints(file: Path, environment: dict[str, str], text: str, words: str) -> None:
    file.write_text(text or "host: a")
    with pytest.raises(ConfigError) as raised:
        configs(environment, file)
    message = str(raised.value)
    assert all(part in message for part in words.split(".*")), message
    assert "--port" not in message
    assert "\n" not in message


def test_a_flag_is_named_where_it_was_given() -> None:
    with pytest.raises(ConfigError, match=r"--max-num-batched-tokens \(4\) must be at least OCTAVO_MAX_NUM_SEQS"):
        configs({"OCTAVO_MAX_NUM_SEQS": "8"}, **{"max-num-batched-tokens": 4})


def test_messages_of_the_start_are_told_in_the_same_words() -> None:
    settings = read_settings({}, {"OCTAVO_PORT": "9000"})
    assert settings.in_their_words("in use; choose another --port") == "in use; choose another OCTAVO_PORT"
    assert settings.in_their_words("--portly is not --dtype") == "--portly is not --dtype"
