"""The etcd key layout: no other module spells a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.vocabulary import Epoch, Rank


@dataclass(frozen=True)
class Keys:
    """Keys of one instance, under ``/eep/<instance>/``."""

    instance: str

    @property
    def prefix(self) -> str:
        """Everything of the instance."""
        return f"/eep/{self.instance}/"

    @property
    def election(self) -> str:
        """Prefix of the candidates' keys; the one with the lowest create_revision leads."""
        return f"{self.prefix}leader/"

    @property
    def spec(self) -> str:
        """Desired policy."""
        return f"{self.prefix}spec"

    @property
    def epochs(self) -> str:
        """Prefix of the epoch record and the placements that it names: who watches it gets both at one revision."""
        return f"{self.prefix}epoch/"

    @property
    def epoch(self) -> str:
        """The current epoch record."""
        return f"{self.epochs}record"

    @property
    def status(self) -> str:
        """What the leader decided beside the epoch."""
        return f"{self.prefix}status"

    @property
    def ranks(self) -> str:
        """Prefix of registrations."""
        return f"{self.prefix}ranks/"

    def rank(self, rank: Rank) -> str:
        """A rank's registration."""
        return f"{self.ranks}{rank:04d}"

    @property
    def reports(self) -> str:
        """Prefix of fault reports."""
        return f"{self.prefix}reports/"

    def report(self, rank: Rank) -> str:
        """A rank's fault report."""
        return f"{self.reports}{rank:04d}"

    @property
    def placements(self) -> str:
        """Prefix of content-addressed placements."""
        return f"{self.epochs}placements/"

    def placement(self, digest: str) -> str:
        """A placement's bytes by SHA-256."""
        return f"{self.placements}{digest}"

    @property
    def all_acks(self) -> str:
        """Prefix of acknowledgements of every epoch."""
        return f"{self.prefix}acks/"

    def acks(self, epoch: Epoch) -> str:
        """Prefix of one epoch's acknowledgements."""
        return f"{self.all_acks}{epoch:012d}/"

    def ack(self, epoch: Epoch, rank: Rank) -> str:
        """One rank's acknowledgement of one epoch."""
        return f"{self.acks(epoch)}{rank:04d}"

    @property
    def operations(self) -> str:
        """Prefix of admin operations."""
        return f"{self.prefix}operations/"

    def operation(self, operation: str) -> str:
        """An admin operation."""
        return f"{self.operations}{operation}"

    @property
    def history(self) -> str:
        """Prefix of the bounded audit ring of epochs."""
        return f"{self.prefix}history/"

    def past(self, epoch: Epoch) -> str:
        """What one epoch was and why."""
        return f"{self.history}{epoch:012d}"

    @property
    def recoveries(self) -> str:
        """Prefix of the bounded ring of recoveries."""
        return f"{self.prefix}recoveries/"

    def recovery(self, recovery: str) -> str:
        """How one change of membership went, phase by phase."""
        return f"{self.recoveries}{recovery}"

    @property
    def backups(self) -> str:
        """Prefix of what each host's memory tier holds."""
        return f"{self.prefix}backups/"

    def backup(self, rank: Rank) -> str:
        """What one rank's host keeps."""
        return f"{self.backups}{rank:04d}"

    @property
    def waits(self) -> str:
        """Prefix of the rows of the receive-wait matrix."""
        return f"{self.prefix}waits/"

    def wait(self, rank: Rank) -> str:
        """How long one rank waited for each other lately."""
        return f"{self.waits}{rank:04d}"

    @property
    def loads(self) -> str:
        """Prefix of the expert loads that ranks measured."""
        return f"{self.prefix}loads/"

    def load(self, rank: Rank) -> str:
        """What one rank routed lately."""
        return f"{self.loads}{rank:04d}"
