"""What every data plane offers, on whatever device its tensors live.

``native.Group`` (CPU) and ``native.cuda.CudaGroup`` both satisfy ``DataPlane``; mypy checks it below. What differs is
when an outcome is known: on a CPU ``dispatch`` and ``combine`` return when they are done, on a CUDA device they have
been put on a stream, and ``status`` is right once the stream is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from native._native import Status, SyncRow, Table
    from native.cuda.vocabulary import ShapeLike


class Row(Protocol):
    """What one rank told the others before a step."""

    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def flags(self) -> int: ...  # noqa: D102
    @property
    def prepared_epoch(self) -> int: ...  # noqa: D102
    @property
    def committed_epoch(self) -> int: ...  # noqa: D102
    @property
    def user(self) -> int: ...  # noqa: D102


class Outcome(Protocol):
    """How an operation ended."""

    @property
    def status(self) -> Status: ...  # noqa: D102
    @property
    def suspects(self) -> list[int]: ...  # noqa: D102


class SyncOutcome(Outcome, Protocol):
    """How a step sync ended."""

    @property
    def rows(self) -> Sequence[Row]:
        """Of every active rank, in rank order; incomplete unless OK."""
        ...


class Arrived(Outcome, Protocol):
    """What a dispatch leaves for the experts."""

    @property
    def pairs(self) -> int:
        """Rows that arrived."""
        ...

    @property
    def rows(self) -> Any:
        """[pairs, hidden], or with room for more."""
        ...

    @property
    def slots(self) -> Any:
        """int32 [pairs]: where each row goes; -1 for room that no row took."""
        ...

    @property
    def weights(self) -> Any:
        """float32 [pairs]: the router's weights."""
        ...


class Summed(Outcome, Protocol):
    """How a combine ended."""

    @property
    def missing(self) -> Any:
        """uint8 [tokens]: contributions that are not in the sum."""
        ...


class DataPlane(Protocol):
    """One rank's end of the elastic dispatch. The stubs of the two classes say what each method does and raises."""

    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def incarnation(self) -> int: ...  # noqa: D102
    @property
    def shape(self) -> ShapeLike: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def round(self) -> int: ...  # noqa: D102
    @property
    def staged_epoch(self) -> int: ...  # noqa: D102
    def inbox_fd(self, source: int) -> int: ...  # noqa: D102
    def renew_inbox(self, source: int) -> int: ...  # noqa: D102
    def doorbell_fd(self) -> int: ...  # noqa: D102
    def connect(self, peer: int, *, incarnation: int, inbox_fd: int, doorbell_fd: int, pid: int) -> None: ...  # noqa: D102
    def disconnect(self, peer: int) -> None: ...  # noqa: D102
    def linked(self) -> dict[int, int]: ...  # noqa: D102
    def stage(self, table: Table) -> None: ...  # noqa: D102
    def activate(self, epoch: int) -> None: ...  # noqa: D102
    def sync_arrived(self) -> bool: ...  # noqa: D102
    def look_again(self) -> bool: ...  # noqa: D102
    def ring(self) -> None: ...  # noqa: D102
    def sync(self, row: SyncRow) -> SyncOutcome: ...  # noqa: D102
    def dispatch(self, layer: int, x: Any, topk_ids: Any, topk_weights: Any) -> Arrived: ...  # noqa: D102
    def combine(self, y: Any, out: Any, *, weighted: bool) -> Summed: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
    def tokens_per_expert(self) -> Any: ...  # noqa: D102
    def counters(self) -> dict[str, int]: ...  # noqa: D102


if TYPE_CHECKING:
    from native._native import Group
    from native.cuda import CudaGroup

    def both_satisfy_it(cpu: Group, cuda: CudaGroup) -> tuple[DataPlane, DataPlane]:
        """Nothing runs this; mypy refuses it when one of the two differs."""
        return cpu, cuda
