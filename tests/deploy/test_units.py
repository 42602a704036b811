"""The systemd units: accepted without a word, hardened, and in step with the programs they start."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.config import Config

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = {
    "eep-controlplane.service": "controlplane",
    "eep-gateway.service": "controlplane.gateway.main",
    "eep-worker@3.service": "worker",
}
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


class Sections(configparser.RawConfigParser):
    """A unit file: keys may repeat, and then the last one counts here."""

    def __init__(self):
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str


def unit(name):
    parsed = Sections()
    parsed.read(FOLDER / re.sub(r"@\d+", "@", name))
    return parsed


@pytest.fixture
def installed(tmp_path):
    """The units as installed, with programs that exist and an etcd to drop into."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("eep-controlplane", "eep-gateway", "eep-worker", "etcd"):
        (programs / program).write_text("#!/bin/sh\n")
        (programs / program).chmod(0o755)
    units = tmp_path / "units"
    shutil.copytree(FOLDER, units)
    shutil.copy(units / "eep-worker@.service", units / "eep-worker@3.service")
    (units / "etcd.service").write_text("[Service]\nExecStart=/opt/eep/bin/etcd\n")
    for file in units.glob("*.service"):
        file.write_text(file.read_text().replace("/opt/eep/bin", str(programs)))
    return units


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
@pytest.mark.parametrize("name", [*UNITS, "etcd.service"])
def test_systemd_has_nothing_to_say(installed, name):
    done = analyze("verify", str(installed / name))
    assert (done.returncode, done.stderr) == (0, "")  # an unknown key is told on stderr only


@needs_systemd
def test_the_check_above_would_see_a_misspelt_key(installed):
    file = installed / "eep-controlplane.service"
    file.write_text(file.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in analyze("verify", str(file)).stderr


@needs_systemd
@pytest.mark.parametrize(("name", "tenths"), [("eep-controlplane.service", 20), ("eep-gateway.service", 20)])
def test_what_faces_the_network_is_hardened(installed, name, tenths):
    done = analyze("security", "--offline=true", f"--threshold={tenths}", str(installed / name))
    assert done.returncode == 0, done.stdout[-400:]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_waits_for_ready_and_is_stopped_gently(name):
    service = unit(name)["Service"]
    assert (service["Type"], service["NotifyAccess"], service["KillMode"]) == ("notify", "main", "mixed")
    assert service["RestartPreventExitStatus"] == "78"


def test_a_worker_has_time_to_be_drained_and_may_pin_memory():
    service = unit("eep-worker@.service")["Service"]
    assert float(service["TimeoutStopSec"]) > Config().worker.stop_deadline_s
    assert service["LimitMEMLOCK"] == "infinity"
    assert "PrivateDevices" not in service


def test_a_gateway_has_time_to_end_its_answers():
    assert float(unit("eep-gateway.service")["Service"]["TimeoutStopSec"]) > Config().gateway.request_deadline_s


def test_the_control_plane_is_watched_and_gets_its_tokens_as_a_credential():
    service = unit("eep-controlplane.service")["Service"]
    assert float(service["WatchdogSec"]) > 0
    assert service["LoadCredential"].startswith("tokens:")


@pytest.mark.parametrize(("name", "module"), UNITS.items())
def test_the_programs_know_the_flags_that_the_units_pass(name, module):
    text = (FOLDER / re.sub(r"@\d+", "@", name)).read_text()
    passed = {
        flag for line in re.findall(r"^Exec\w+=(.*)$", text, re.MULTILINE) for flag in re.findall(r"--[\w-]+", line)
    }
    help_text = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert passed
    assert {flag for flag in passed if not re.search(rf"{flag}\b", help_text)} == set()
