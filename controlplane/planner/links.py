"""What the links between ranks, hosts and storage can carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from controlplane.planner.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["copy", "peer_out", "rank_in", "nic_out", "nic_in", "memory", "disk", "shared_disk"]


@dataclass(frozen=True, kw_only=True)
class Links:
    """Bandwidths in bytes per second; what one transfer crosses, it shares with all others that cross it.

    Attributes:
        expert_bytes: size of one slot.
        copy: within one rank (device memory to device memory).
        peer_out: out of one rank to peers, on the host or through the network (NVLink or PCIe).
        rank_in: into one rank from anywhere but itself.
        nic_out: out of one host to the network.
        nic_in: into one host from the network.
        memory: out of one host's memory backup.
        disk: out of one host's own disk; 0 where checkpoints are only on the shared one.
        shared_disk: out of the shared file system, over all hosts; 0 where there is none.
        measured: (kind, name) → bandwidth where it was measured; the name is a rank number or a host.
    """

    expert_bytes: int
    copy: float = 1e12
    peer_out: float = 200e9
    rank_in: float = 50e9
    nic_out: float = 50e9
    nic_in: float = 50e9
    memory: float = 50e9
    disk: float = 3e9
    shared_disk: float = 0.0
    measured: Mapping[tuple[Kind, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.expert_bytes <= 0:
            raise InvalidInputError(f"expert_bytes={self.expert_bytes}: must be above 0")
        for name in ("copy", "peer_out", "rank_in", "nic_out", "nic_in", "memory"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"links: {name}={getattr(self, name)} must be above 0 bytes per second")
        for (kind, name), value in self.measured.items():
            if not value > 0:
                raise InvalidInputError(f"links: measured {kind} of {name} is {value}, it must be above 0")

    def seconds(self, kind: Kind, name: str) -> float:
        """Time that one slot occupies this link; infinite where there is no such link."""
        bandwidth = self.measured.get((kind, name), getattr(self, kind))
        return self.expert_bytes / bandwidth if bandwidth > 0 else float("inf")
