"""Prometheus' programs, and a real server under load that a real Prometheus scrapes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from api_keys import ADA, ADMIN, GRACE
from mixed_load import load
from monitoring import PROMETHEUS, rule_files, shortened
from prometheus_server import Prometheus, prometheus
from serving import Server, serve
from tiny_models import make_tiny
from tiny_tokenizer import write_tokenizer

# A scrape may take as long at most, on a machine that has much else to do.
SCRAPE_INTERVAL = "1s"

# A pool that is far too small for the load, below it two tiers that are too small as well.
OPTIONS = """
    --num-blocks 56 --max-model-len 384 --max-num-seqs 16 --dtype float32 --attention-backend reference
    --preemption swap --swap-space 64KiB --swap-disk 96KiB --lookahead 1 --watermark-ratio 0
    --policy fair --tenants ada:weight=2,floor=4;grace:ceiling=40 --allowed-hosts octavo --threads 1
"""
KEYS = f"{ADA} tenant=ada\n{GRACE} tenant=grace\n{ADMIN} tenant=default admin\n"


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool")


def program(name: str) -> str:
    """Where a program of Debian's package `prometheus` is; skips the test without it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; on Debian it comes with `apt-get install prometheus`")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a tiny model and three tenants' keys."""
    folder = tmp_path_factory.mktemp("monitored")
    model, keys, swap = folder / "tiny", folder / "keys", folder / "swap"
    model.mkdir()
    swap.mkdir()
    make_tiny(model, "Llama", vocab_size=512, max_position_embeddings=512)
    write_tokenizer(model)
    keys.write_text(KEYS)
    with serve(
        str(model), *OPTIONS.split(), "--api-keys", str(keys), "--swap-dir", str(swap), log=folder / "log"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def watched(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with our config and rules, at a test's speed, beside the server under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    binary = program("prometheus")
    config = write_config(folder, f"127.0.0.1:{server.port}")
    with load(server.url), prometheus(binary, config, folder / "log") as running:
        yield running


def write_config(folder: Path, target: str) -> Path:
    """Our config for another target, faster; with our rules, whose windows are shorter."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), SCRAPE_INTERVAL)
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "metrics-key").write_text(f"{ADMIN}\n")
    (folder / "rules").mkdir()
    for file in rule_files():
        (folder / "rules" / file.name).write_text(shortened(file.read_text()))
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
