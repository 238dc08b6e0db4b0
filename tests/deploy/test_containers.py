"""The containers' files, as far as they can be judged without running them: paths, options, users, versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring import DASHBOARDS, DEPLOY, PROMETHEUS, ROOT

from octavo.server.arguments import Parser, add_server_options, settings_of
from octavo.server.hosts import check_exposure, names_of
from octavo.server.keys import Identity, Keys

GRAFANA = DEPLOY / "grafana" / "provisioning"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def services(name: str = "compose.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())["services"]
    return found


def mounts(service: str) -> list[tuple[str, str]]:
    """(Source, place in the container) of what a service mounts."""
    pairs = [volume.removesuffix(":ro").rsplit(":", 1) for volume in services()[service]["volumes"]]
    return [(source, target) for source, target in pairs]


def scraped() -> str:
    """Prometheus' name for Octavo, without the port."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    name: str = target.removesuffix(":8000")
    return name


@pytest.mark.parametrize("service", services())
def test_a_service_is_watched_and_unprivileged_and_seen_by_this_machine_only(service: str) -> None:
    options = services()[service]
    assert options["healthcheck"]["test"]
    assert options["restart"] == "unless-stopped"
    assert options["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in options["ports"])


@pytest.mark.parametrize("service", services())
def test_what_a_service_mounts_is_there(service: str) -> None:
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    for source, _ in mounts(service):
        assert (DEPLOY / source).exists() if source.startswith(".") else source in volumes, source


def test_no_image_is_whatever_is_latest() -> None:
    images = [options["image"] for options in services().values() if "image" in options]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 3
    assert all(re.search(r":v?\d+\.\d+", image) for image in images), images


@pytest.mark.parametrize(
    ("file", "keys"), [("compose.yaml", None), ("compose.keys.yaml", Keys({b"": Identity(admin=True)}))]
)
def test_octavo_takes_its_options_and_answers_prometheus(
    file: str, keys: Keys | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *options = services(file)["octavo"]["command"]
    assert command == "serve"
    for variable in re.findall(r"(OCTAVO_\w+)=", DOCKERFILE):
        monkeypatch.setenv(variable, "/var/cache")
    parser = Parser("octavo serve", "[MODEL] [options]", "")
    add_server_options(parser)
    _, _, server = settings_of(parser, parser.parse(options))
    assert (server.host, server.port, server.api_keys is None) == ("0.0.0.0", 8000, keys is None)
    check_exposure(server, keys)
    names = names_of(server, keys)
    assert names is None or scraped() in names
    assert scraped() in services()


def test_the_image_copies_what_there_is_and_runs_as_nobody_special() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert all((ROOT / source).exists() for source in sources)
    links = [path for path in (ROOT / "src" / "octavo").iterdir() if path.is_symlink()]
    assert {path.name for path in links} < set(sources), "src/octavo links to folders that are not copied"
    users = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] not in {"0", "root"}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == set(sources)


def test_prometheus_finds_its_config_and_an_empty_key() -> None:
    places = {target: DEPLOY / source for source, target in mounts("prometheus") if source.startswith(".")}
    assert places["/etc/prometheus"].samefile(PROMETHEUS)
    assert "--config.file=/etc/prometheus/prometheus.yaml" in services()["prometheus"]["command"]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    key = PROMETHEUS / config["scrape_configs"][0]["authorization"]["credentials_file"]
    assert key.read_text() == "", "a key has been written into the working tree"
    assert all(list(PROMETHEUS.glob(pattern)) for pattern in config["rule_files"])
    (mounted,) = services("compose.keys.yaml")["prometheus"]["volumes"]
    assert mounted.split(":")[-2] == f"/etc/prometheus/{key.name}"


def test_grafana_is_provisioned_with_the_data_source_and_the_dashboards() -> None:
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "octavo.yaml").read_text())["providers"]
    places = {target: DEPLOY / source for source, target in mounts("grafana") if source.startswith(".")}
    assert places[provider["options"]["path"]].samefile(DASHBOARDS)
    assert places["/etc/grafana/provisioning"].samefile(GRAFANA)
    home = Path(services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (places[str(home.parent)] / home.name).is_file()
