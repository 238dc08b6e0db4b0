"""The log of a real server: both its processes write lines that a program can read, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import serve

pytestmark = pytest.mark.model

MODEL = "smollm2-135m-instruct"
OPTIONS = ("--num-blocks", "256", "--max-model-len", "512", "--log-stats-interval", "0.1")


def ask(url: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "CANARY"}], "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-request-id": "mine"}, timeout=60)
    answer.raise_for_status()


def test_every_line_of_both_processes_is_json(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve(*OPTIONS, "--log-format", "json", log=log) as server:
        ask(server.url)
        os.kill(server.engine_pid(), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while log.read_text().count('"process": "engine"') < 2:
            assert time.monotonic() < deadline, "no other engine was started"
            time.sleep(0.05)
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    assert {line["process"] for line in lines} == {"server", "engine"}
    assert any(line["level"] == "error" and "the engine ended" in line["message"] for line in lines)
    (request,) = [line for line in lines if line["logger"] == "octavo.request"]
    assert (request["request_id"], request["output_tokens"], request["tenant"]) == ("mine", 24, "default")
    assert 0 <= request["queue_seconds"] + request["prefill_seconds"] <= request["first_token_seconds"] + 0.01
    assert max(line["generated_tokens_per_second"] for line in lines if line["logger"] == "octavo.stats") > 0
    assert "CANARY" not in log.read_text()


def test_people_get_lines_from_both(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve(*OPTIONS, "--otlp-endpoint", "http://127.0.0.1:9", log=log) as server:  # where nobody listens
        ask(server.url)
    text = log.read_text()
    assert re.search(r" INFO engine/octavo\.engine\.process: ready: \S+ on cpu, 256 blocks of 16 tokens\n", text)
    assert re.search(r" INFO octavo\.request: POST /v1/chat/completions 200 request_id=mine .* output_tokens=24 ", text)
    assert re.search(r" INFO octavo\.stats: engine running=\d+ ", text)
