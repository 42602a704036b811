"""The control plane's unit under a real systemd: booted in a container, hardened as installed, watched, stopped.

Needs root, ``systemd-nspawn`` and a root file system, which ``EEP_NSPAWN_ROOT`` names::

    debootstrap --variant=minbase bookworm ROOT
    --include=systemd,systemd-sysv,dbus,libssl3,libffi8,libsqlite3-0,liblzma5,libreadline8,libstdc++6,curl
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.etcd.local import find_binary

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "deploy" / "systemd"
ROOT = os.environ.get("EEP_NSPAWN_ROOT", "")
TOKEN = "0123456789abcdef-booted"  # noqa: S105 - a test's
pytestmark = [
    pytest.mark.skipif(
        not ROOT or shutil.which("systemd-nspawn") is None or os.geteuid() != 0,
        reason="needs root, systemd-nspawn, and EEP_NSPAWN_ROOT (see the module)",
    ),
    pytest.mark.timeout(300),
]

PROGRAM = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH={paths} PYTHONDONTWRITEBYTECODE=1
exec /opt/python/bin/{python} -c 'import sys; from controlplane.service import main; sys.exit(main())' "$@"
"""

SCRIPT = """#!/bin/sh
unit=eep-controlplane
until [ "$(systemctl is-active $unit)" = active ]; do sleep 0.2; done
until systemctl show -p StatusText $unit | grep -q leader; do sleep 0.2; done
pid=$(systemctl show -p MainPID --value $unit)
echo "status=$(systemctl show -p StatusText --value $unit)"
echo "uid=$(stat -c %u /proc/$pid)"
echo "credential=$(stat -c %a:%u /run/credentials/$unit.service/tokens)"
echo "ready=$(curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:8470/readyz)"
echo "denied=$(curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:8470/v1/cluster)"
echo "allowed=$(curl -s -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {token}' http://127.0.0.1:8470/v1/cluster)"
kill -STOP $pid
until [ "$(systemctl show -p NRestarts --value $unit)" = 1 ]; do sleep 0.2; done
echo "watchdog=$(journalctl -u $unit --no-pager | grep -c 'Watchdog timeout')"
until [ "$(systemctl is-active $unit)" = active ]; do sleep 0.2; done
until systemctl show -p StatusText $unit | grep -q leader; do sleep 0.2; done
systemctl stop $unit
echo "stopped=$(systemctl show -p Result --value $unit):$(systemctl show -p ExecMainStatus --value $unit)"
systemctl poweroff
"""


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@pytest.fixture
def machine(tmp_path):
    """A copy of the root file system with the unit, an etcd, and this interpreter's packages bound into it."""
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", ROOT, root], check=True, timeout=120)
    packages = [
        path for path in map(Path, sys.path) if path.is_dir() and path.name in ("site-packages", "dist-packages")
    ]
    binds = {Path(sys.base_prefix): "/opt/python", REPOSITORY: "/srv/eep"}
    binds |= {path: f"/srv/packages{number}" for number, path in enumerate(packages)}
    for inside in binds.values():
        (root / inside[1:]).mkdir(parents=True, exist_ok=True)
    paths = ":".join(inside for inside in binds.values() if inside.startswith("/srv"))
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    write(root / "opt/eep/bin/eep-controlplane", PROGRAM.format(paths=paths, python=python), 0o755)
    settings = 'tokens_file = "/run/credentials/eep-controlplane.service/tokens"'
    write(root / "etc/eep/eep.toml", f'[instance]\nname = "booted"\n[controlplane]\n{settings}\n')
    write(root / "etc/eep/tokens", f"operator alice {TOKEN}\n", 0o600)
    write(root / "etc/hosts", "127.0.0.1 localhost\n")
    system = root / "etc/systemd/system"
    write(system / "etcd.service", "[Service]\nType=notify\nExecStart=/usr/local/bin/etcd --data-dir /var/lib/etcd\n")
    shutil.copytree(UNITS / "etcd.service.d", system / "etcd.service.d", dirs_exist_ok=True)
    shutil.copy(UNITS / "eep-controlplane.service", system)
    shutil.copy(find_binary(), root / "usr/local/bin/etcd")
    write(root / "root/check", SCRIPT.format(token=TOKEN), 0o755)
    report = "StandardOutput=file:/root/report\nStandardError=inherit"
    write(system / "check.service", f"[Service]\nExecStart=/root/check\n{report}\n")
    wants = system / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    for unit in ("etcd", "eep-controlplane", "check"):
        (wants / f"{unit}.service").unlink(missing_ok=True)
        (wants / f"{unit}.service").symlink_to(f"../{unit}.service")
    yield root, [f"--bind-ro={outside}:{inside}" for outside, inside in binds.items()]
    shutil.rmtree(root, ignore_errors=True)


def test_the_unit_runs_is_watched_and_stops_gently(machine):
    root, binds = machine
    boot = ["systemd-nspawn", "--register=no", "--keep-unit", "-q", "-D", str(root), "-b", "--private-network", *binds]
    subprocess.run(boot, stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=True)
    report = dict(line.split("=", 1) for line in (root / "root/report").read_text().splitlines())
    assert report["status"].startswith("leader")
    assert int(report["uid"]) > 60000  # a user of its own, made for the occasion
    assert report["credential"] == f"400:{report['uid']}"
    assert (report["ready"], report["denied"], report["allowed"]) == ("200", "401", "200")
    assert report["watchdog"] == "1"
    assert report["stopped"] == "success:0"
