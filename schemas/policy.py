"""``spec``: the policy of one instance, as the operator wants it. Units are in the names."""

from __future__ import annotations

from enum import StrEnum

from schemas.records import Record


class OnTimeout(StrEnum):
    """What to do with a planned change when a rank that is already active does not acknowledge it in time."""

    ROLLBACK = "rollback"
    EXCLUDE = "exclude"


class Survivability(StrEnum):
    """Which single loss must cost no expert its last replica."""

    NONE = "none"
    RANK = "rank"
    HOST = "host"


class Spec(Record, frozen=True, kw_only=True):
    """Each default is explained on its line; the control plane writes the record once, from its configuration."""

    ranks: int = 0
    """Ranks to wait for before the first epoch; 0 forms as soon as every expert has a slot."""
    max_ranks: int = 0
    """Rows of every placement, at least; 0 makes them as many as the highest rank needs."""
    form_wait_s: float = 5.0
    """How long the first epoch waits for the rest once the ready ranks could cover every expert."""
    survivability: Survivability = Survivability.RANK
    prepare_deadline_s: float = 120.0
    """For a planned change: links, loads and the drained rank's last requests."""
    abort_deadline_s: float = 30.0
    """For survivors to load what an unplanned epoch needs; a rank that is later is excluded if the others are not."""
    activate_deadline_s: float = 30.0
    """From all prepared to all across: one step, or one ring of an idle rank."""
    source_retry_s: float = 10.0
    """A rank whose checkpoint lacked something is asked again after this, or as soon as it registers anew."""
    on_timeout: OnTimeout = OnTimeout.ROLLBACK
    silent_tie_s: float = 1.0
    """How long accusations without a majority wait for more reports before the smaller evil is chosen."""
    slow_after_s: float = 5.0
    """A rank called slow for this long by a majority gets less traffic."""
    slow_drain_s: float = 60.0
    """… and for this long is drained."""
    slow_clear_s: float = 20.0
    """Without a complaint for this long it counts as healthy again (longer than slow_after_s: hysteresis)."""
    slow_share: float = 0.5
    """Share of its nominal speed that a slow rank is planned with where nothing was measured, and the least ever."""
    slow_wait_share: float = 0.3
    """A rank is slow when its peers spend this part of their time waiting for it, beyond what they wait for the others;
    1 judges by their complaints alone."""
    slow_rows: int = 3
    """Rows of the receive-wait matrix (one each 5 s), from more than half of the peers, that must agree."""
    slow_move_slots: int = 64
    """Slots that the rebalance which follows may write, over all layers; weights shift in any case."""
    flap_window_s: float = 600.0
    flap_limit: int = 4
    """Losses within the window after which a rank stays out until an operator lets it in."""
    backoff_s: float = 1.0
    """Wait before the second return within the window, doubled for each further one; the first is immediate."""
    backoff_max_s: float = 60.0
    operation_deadline_s: float = 600.0
    history: int = 256
    """Epochs, recoveries and finished operations kept."""
