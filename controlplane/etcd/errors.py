"""What can go wrong with etcd, one class per thing a caller does differently."""

from __future__ import annotations


class EtcdError(Exception):
    """Root of everything this package raises."""


class UnavailableError(EtcdError):
    """No member answered in time, and nothing was written: keep the last known state and try again later."""


class OutcomeUnknownError(EtcdError):
    """The request was sent but no answer came: it may have been applied. Read the key before deciding anything."""


class CompactedError(EtcdError):
    """The revision asked for is gone: list again and go on from there."""

    def __init__(self, asked: int, oldest: int = 0) -> None:
        self.asked = asked
        self.oldest = oldest
        """0 where etcd did not say."""
        kept = f", the oldest kept is {oldest}" if oldest else ""
        super().__init__(f"revision {asked} is compacted{kept}: list the prefix again")


class LeaseNotFoundError(EtcdError):
    """The lease expired or was revoked: its keys are gone, and whoever acted on it must stop."""

    def __init__(self, lease: int) -> None:
        self.lease = lease
        super().__init__(f"lease {lease:x} does not exist: it expired or was revoked; ask for a new one")


class LeaseLostError(EtcdError):
    """The owner's lease is lost or can no longer be proved held: stop acting on it at once."""

    def __init__(self, lease: int, reason: str) -> None:
        self.lease = lease
        self.reason = reason
        super().__init__(f"lease {lease:x} lost: {reason}")


class DeposedError(EtcdError):
    """Another candidate leads, or nobody does: this process's fence is void. Stop leading; campaign again."""

    def __init__(self, fence: int, found: int) -> None:
        self.fence = fence
        self.found = found
        holder = f"the key now carries {found}" if found else "the key is gone"
        super().__init__(f"fence {fence} is void: {holder}; stop leading and campaign again")


class TooLargeError(EtcdError):
    """The request is over etcd's limit of bytes or operations: split it."""


class NoSpaceError(EtcdError):
    """etcd raised its NOSPACE alarm: compact, defragment and disarm it, or raise --quota-backend-bytes."""


class AuthenticationError(EtcdError):
    """The user name or password was refused: check etcd.user and etcd.password_file."""


class PermissionDeniedError(EtcdError):
    """The user may not touch this key: grant its role the instance's prefix."""


class WrongClusterError(EtcdError):
    """An endpoint answered for another cluster, or for one restored from a backup: check etcd.endpoints, restart."""


class RejectedError(EtcdError):
    """etcd refused the request as malformed: a bug of the caller or an incompatible server."""
