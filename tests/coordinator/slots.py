"""What the ranks' slots really hold if every rank does its worst within the protocol: records must say the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from schemas.placement import EMPTY

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from schemas.placement import Placement
    from schemas.records import Ack, EpochRecord, Registration
    from schemas.vocabulary import Epoch, Incarnation, Rank


@dataclass
class Slots:
    """Slots of every process. One that is to be written is spoiled the moment that the record asks for it."""

    held: dict[tuple[Rank, Incarnation], npt.NDArray[np.uint16]] = field(default_factory=dict)
    wanted: dict[tuple[Epoch, Rank, Incarnation], npt.NDArray[np.uint16]] = field(default_factory=dict)

    def published(
        self, record: EpochRecord, known: Mapping[str, Placement], processes: Mapping[Rank, Registration]
    ) -> None:
        """Every rank that is there begins to write; what it writes is what the record does not say it holds."""
        changing = record.preparing or record.committed
        if not changing.placement or not (record.preparing or record.loading):
            return
        target, said = known[changing.placement], known.get(record.held)
        for member in changing.members:
            there = processes.get(member.rank)
            if there is None or there.incarnation != member.incarnation:
                continue
            mine, wish = self._slots(member.rank, member.incarnation, target), target.slots[:, member.rank]
            before = np.full_like(wish, EMPTY)
            if said is not None and member.rank < said.max_ranks:
                before[:, : said.slots_per_rank] = said.slots[:, member.rank]
            written = (wish != EMPTY) & (wish != before)
            mine[written] = EMPTY
            self.wanted[changing.epoch, member.rank, member.incarnation] = np.where(written, wish, EMPTY)

    def acknowledged(self, ack: Ack) -> None:
        """A rank that has prepared has loaded all that was asked, but for what it says is missing."""
        wish = self.wanted.get((ack.epoch, ack.rank, ack.incarnation))
        if wish is None or not ack.prepared:
            return
        wish = wish.copy()
        for layer, expert in ack.missing:
            wish[layer, wish[layer] == expert] = EMPTY
        mine = self.held[ack.rank, ack.incarnation]
        mine[wish != EMPTY] = wish[wish != EMPTY]

    def check(
        self, record: EpochRecord, known: Mapping[str, Placement], processes: Mapping[Rank, Registration]
    ) -> None:
        """4: what a record says is held is held, and so is all that it routes to before it is committed."""
        committed, said = record.committed, known.get(record.held)
        table = None if record.loading or committed.missing else known.get(committed.placement)
        for member in committed.members:
            there = processes.get(member.rank)
            if there is None or there.incarnation != member.incarnation:
                continue  # its end is known soon
            if said is not None and member.rank < said.max_ranks:
                self._true(member.rank, member.incarnation, said, said.slots[:, member.rank] != EMPTY)
            if table is not None and member.rank < table.max_ranks:
                self._true(member.rank, member.incarnation, table, table.weights[:, member.rank] > 0)

    def _true(self, rank: Rank, incarnation: Incarnation, said: Placement, counted: npt.NDArray[np.bool_]) -> None:
        mine = self._slots(rank, incarnation, said)
        wrong = counted & (mine != said.slots[:, rank])
        assert not wrong.any(), f"rank {rank} is said to hold {said.slots[:, rank].tolist()}, it holds {mine.tolist()}"

    def _slots(self, rank: Rank, incarnation: Incarnation, like: Placement) -> npt.NDArray[np.uint16]:
        """This process's slots, as many as ``like`` has."""
        shape = (like.n_layers, like.slots_per_rank)
        mine = self.held.get((rank, incarnation))
        if mine is None or mine.shape[1] < shape[1]:
            wider = np.full(shape, EMPTY, dtype=np.uint16)
            if mine is not None:
                wider[:, : mine.shape[1]] = mine
            mine = self.held[rank, incarnation] = wider
        return mine[:, : shape[1]]
