"""Span and attribute names: one vocabulary for every process, so that a trace reads as one story.

A recovery or an operation is one trace. Its root span is ``RECOVERY`` or ``ACCEPT``; below it stand the phases in
the order of ``PHASES``, and below ``PREPARE`` one ``LOAD`` per weight source of that rank.
"""

from __future__ import annotations

# --- spans --------------------------------------------------------------------------------------------------------

RECOVERY = "eep.recovery"
"""Root: from the first evidence to the first token under the new epoch."""
ACCEPT = "eep.accept"
"""Root of what an operator began, and of the trace its record carries: the request, weighed and written."""
OPERATION = "eep.operation"
"""One admin operation, from acceptance to its end; below ``ACCEPT``."""
DETECT = "eep.detect"
"""From the moment of the fault, as its reporter stamped it, to the leader's receipt."""
DECIDE = "eep.decide"
"""Evidence weighed: who is excluded, and why."""
PLAN = "eep.plan"
"""The planner's time."""
PUBLISH = "eep.publish"
"""Placement and epoch record written to etcd."""
PREPARE = "eep.prepare"
"""One rank links, loads and stages; one span per rank."""
LOAD = "eep.load"
"""One source tier of one rank's ``PREPARE``."""
COMMIT = "eep.commit"
"""From the last acknowledgement (or the decision, for an abort) to the commit's revision."""
FIRST_TOKEN = "eep.first_token"  # noqa: S105 - a span's name, not a secret
"""From the commit to the first step that ran under the new epoch."""
ELECTION = "eep.election"
"""A replica became leader; a recovery that it takes over links here."""

REQUEST = "eep.request"
"""One client request through the gateway; linked to the recovery that made it change ranks."""

PHASES = (DETECT, DECIDE, PLAN, PUBLISH, PREPARE, COMMIT, FIRST_TOKEN)
"""Children of a root span in the order in which they begin."""

# --- attributes ---------------------------------------------------------------------------------------------------

INSTANCE = "eep.instance"
EPOCH_FROM = "eep.epoch.from"
EPOCH_TO = "eep.epoch.to"
FENCE = "eep.fence"
CUT = "eep.cut"
RANK = "eep.rank"
INCARNATION = "eep.incarnation"
REPLICA = "eep.replica"
OPERATION_ID = "eep.operation.id"
RECOVERY_ID = "eep.recovery.id"
KIND = "eep.operation.kind"
REASON = "eep.reason"
"""The decision in words."""
BLAME = "eep.blame"
"""Ranks excluded, as ``3,17``."""
EVIDENCE = "eep.evidence"
"""The strongest evidence that the decision rests on."""
REPORTERS = "eep.reporters"
TIER = "eep.source.tier"
BYTES = "eep.bytes"
SLOTS = "eep.slots"
OUTCOME = "eep.outcome"
