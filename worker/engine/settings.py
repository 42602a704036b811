"""What an engine is told at start: one JSON file, named by ``EEP_ENGINE_SETTINGS``.

SGLang's processes have nothing in common but their environment, in which a variable names this file.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from worker.engine.errors import SettingsError

ENVIRONMENT = "EEP_ENGINE_SETTINGS"


class Missing(StrEnum):
    """What to do with a token whose expert has no live replica."""

    STRICT = "strict"
    """Sample nothing until an epoch brings the expert back."""
    BEST_EFFORT = "best_effort"
    """Leave the expert out, renormalise the router's other weights, and count it."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's place in the instance. Paths are on this host; times in seconds."""

    rank: int
    incarnation: int
    max_ranks: int
    slots: int
    """Expert slots of each MoE layer on this rank."""
    control_path: str
    """The control block that the agent made."""
    agent_socket: str
    """Where the agent listens."""
    link_socket: str
    """Where this engine lets peers fetch descriptors."""
    serve_url: str
    model_path: str
    manifest_dir: str
    """Where slot checksums of the checkpoint are kept between starts."""
    max_tokens: int = 256
    """Rows of one dispatch round; larger prefills go in several rounds."""
    silence_s: float = 1.0
    """A peer whose beacon is frozen for so long is suspected."""
    step_deadline_s: float = 30.0
    """No wait inside a step is longer."""
    background_mb_per_s: float = 0.0
    """Loads of a planned change take no more than this; 0 for no limit."""
    missing_experts: Missing = Missing.STRICT
    device: Literal["cpu", "cuda"] = "cpu"
    """SGLang's --device."""
    fixed_membership: bool = False
    """The data plane without elasticity, for measuring what it costs."""

    def __post_init__(self) -> None:
        for name in ("max_ranks", "slots", "max_tokens", "silence_s", "step_deadline_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be > 0")
        if not 0 <= self.rank < self.max_ranks:
            raise ValueError(f"rank = {self.rank}: must be within 0 … max_ranks − 1 = {self.max_ranks - 1}")

    def write(self, path: Path) -> None:
        """Store as JSON for ``load``."""
        path.write_bytes(msgspec.json.encode(self))

    @classmethod
    def load(cls, path: Path) -> EngineSettings:
        """Read what ``write`` stored.

        Raises:
            SettingsError: no such file, unknown or missing key, or a value out of range.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise SettingsError(f"engine settings {path}: {error}. Remedy: see EngineSettings for keys") from error


def from_environment() -> EngineSettings | None:
    """The settings of this process, or None when it is not an elastic rank's."""
    path = os.environ.get(ENVIRONMENT)
    return EngineSettings.load(Path(path)) if path else None
