"""The words the whole system uses, under one name each.

A *rank* is a place in the instance (0 … max_ranks−1) and outlives the processes that fill it; an *incarnation* is one
process start in that place. A *slot* is a piece of memory on a rank that can hold one *expert* of one layer; the same
expert in two slots is two *replicas*. An *epoch* is one version of (members, placement).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

import msgspec

Rank: TypeAlias = int
Incarnation: TypeAlias = int
Epoch: TypeAlias = int
Stamp: TypeAlias = int
"""What tags on the wire carry of the version that a step runs under (``stamp_of``); orders versions as epochs do."""
Fence: TypeAlias = int
"""The create_revision of the leader's key: grows with every election, so a deposed leader's writes fail."""
Layer: TypeAlias = int
Expert: TypeAlias = int
Slot: TypeAlias = int

MAX_RANKS = 128
IDS_ONLY = "eep_ids_only"
"""Among a request's ``custom_params``: who asks a rank makes the text himself."""


def stamp_of(epoch: Epoch, *, without: Rank = -1) -> Stamp:
    """The version decided as ``epoch``; or what is left of that one once the rank ``without`` is gone.

    The latter needs no decision to be known: ranks that see the same death run their step again under the same stamp
    while the leader decides, and it lies between those of ``epoch`` and of all later ones. 32 bits on the wire: epochs
    below 2**24.
    """
    return epoch * 2 * MAX_RANKS + without + 1


class RankState(StrEnum):
    """Where a rank slot is in its life; only an etcd transaction by the fenced leader moves it."""

    EMPTY = "empty"
    JOINING = "joining"
    LINKED = "linked"
    ACTIVE = "active"
    SUSPECT = "suspect"
    FENCED = "fenced"
    DRAINING = "draining"
    CORDONED = "cordoned"


class Evidence(StrEnum):
    """Why a rank is thought to be gone, strongest first (ARCHITECTURE, "Detecting faults")."""

    DEAD = "dead"
    LEASE = "lease"
    SILENT = "silent"
    SLOW = "slow"
    NOTICE = "notice"


class Cut(StrEnum):
    """How ranks cross into an epoch."""

    PLANNED = "planned"
    """Together at one step boundary; no step is lost."""
    ABORT = "abort"
    """The step in flight is abandoned on every survivor and run again under the new epoch."""


class SourceTier(StrEnum):
    """Where a slot's weights come from, cheapest first."""

    SAME_RANK = "same_rank"
    HOST_PEER = "host_peer"
    REMOTE_PEER = "remote_peer"
    HOST_BACKUP = "host_backup"
    CHECKPOINT = "checkpoint"


class Member(msgspec.Struct, frozen=True, order=True):
    """One active rank of an epoch and the process that fills it."""

    rank: Rank
    incarnation: Incarnation
