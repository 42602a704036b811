"""The composition and the image: pinned, checked for health, closed to the outside, with and without GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from schemas.config import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def workers(profile):
    return {name: service for name, service in SERVICES.items() if profile in service.get("profiles", [])}


def test_etcd_is_pinned_to_a_version_without_known_data_loss():
    version = re.fullmatch(r".*/etcd:v(\d+)\.(\d+)\.(\d+)", SERVICES["etcd"]["image"])
    assert tuple(map(int, version.groups())) >= (3, 5, 21)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check_and_comes_back(name):
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "etcd"])
def test_nothing_starts_before_etcd_is_well(name):
    assert SERVICES[name]["depends_on"]["etcd"]["condition"] == "service_healthy"


def test_what_is_published_is_published_on_loopback_only():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) >= 3
    assert {port.split(":")[0] for port in published} == {"127.0.0.1"}


def test_each_gpu_rank_reserves_a_gpu_of_its_own():
    reserved = [service["deploy"]["resources"]["reservations"]["devices"][0] for service in workers("gpu").values()]
    assert {device["driver"] for device in reserved} == {"nvidia"}
    assert [device["device_ids"] for device in reserved] == [["0"], ["1"], ["2"], ["3"]]
    assert all(device["capabilities"] == ["gpu"] for device in reserved)


def test_the_cpu_profile_needs_no_gpu():
    assert len(workers("cpu")) == 4
    assert all("deploy" not in service for service in workers("cpu").values())


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_ranks_share_memory_and_may_pin_it(profile):
    ranks = []
    for service in workers(profile).values():
        assert (service["ipc"], service["pid"], service["ulimits"]["memlock"]) == ("host", "host", -1)
        ranks.append(service["command"][service["command"].index("--rank") + 1])
    assert ranks == ["0", "1", "2", "3"]


def test_the_settings_are_valid_and_fit_the_composition():
    host, control = load_config(FOLDER / "host.toml"), load_config(FOLDER / "controlplane.toml")
    assert host.instance.name == control.instance.name
    assert host.instance.max_ranks == control.instance.max_ranks == len(workers("gpu"))
    assert control.controlplane.tokens_file == f"/run/secrets/{next(iter(COMPOSE['secrets']))}"
    for number, service in enumerate(workers("cpu").values()):
        assert f":{host.worker.first_port + number}/" in service["healthcheck"]["test"][-1]
        assert int(service["stop_grace_period"].rstrip("s")) > host.worker.stop_deadline_s


def test_the_default_settings_file_is_valid():
    load_config(ROOT / "deploy" / "eep.toml")


def test_the_image_copies_what_exists_and_runs_as_nobody_special():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert "USER eep" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
