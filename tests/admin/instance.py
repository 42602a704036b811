"""An instance as the API sees it: records in a real etcd, and this replica's reading of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from controlplane.admin import Authentication, EtcdArchive, Snapshot, TokenFile, make_app, routes
from controlplane.admin.events import Streams
from controlplane.telemetry import ControlPlaneMetrics
from schemas.codec import encode
from schemas.operations import PastEpoch, Phase, Prediction, Recovery
from schemas.placement import Placement
from schemas.records import EpochRecord, EpochVersion, LeaderRecord, RankView, Registration, Status
from schemas.vocabulary import Cut, Member, RankState

if TYPE_CHECKING:
    from schemas.keys import Keys

OPERATOR, VIEWER = "operator-token-0123456789", "viewer-token-0123456789"
TOKENS = f"""
# role    name     token
operator  alice    {OPERATOR}
viewer    grafana  {VIEWER}   # dashboards
"""
SECOND = 1_000_000_000
BEGAN = 1_700_000_000 * SECOND
RANKS, EXPERTS, SLOTS = 4, 6, 3


def as_bearer(token):
    return {"Authorization": f"Bearer {token}"}


def table_of(instance):
    """The route table of an app over ``instance``."""
    streams = Streams(reader=instance, archive=instance.archive)
    return routes(
        reader=instance,
        archive=instance.archive,
        predictor=instance,
        registry=CollectorRegistry(),
        streams=streams,
    )


class Instance:
    """Four ranks on two hosts at epoch 7, rank 3 spare; also the ``Reader`` and the ``Predictor`` of the app."""

    def __init__(self, etcd, keys: Keys) -> None:
        self.etcd = etcd
        self.keys = keys
        self.archive = EtcdArchive(etcd, keys)
        self.prediction = Prediction(epoch=7, members=(0, 1), allowed=True, headroom_before=1, pause_ms=12.5)
        self.predicted = []
        placement = Placement.round_robin(layers=2, experts=EXPERTS, ranks=range(3), max_ranks=RANKS, slots=SLOTS)
        members = tuple(Member(rank, 10 + rank) for rank in range(3))
        version = EpochVersion(
            epoch=7, members=members, placement=placement.digest, cut=Cut.ABORT, reason="rank 3 is dead", cause="r-1"
        )
        self.current = Snapshot(
            instance=keys.instance,
            replica="cp-1",
            revision=0,
            connected=True,
            leading=True,
            leader=LeaderRecord(replica="cp-1", admin_url="http://127.0.0.1:1"),
            fence=42,
            epoch=EpochRecord(committed=version, decided_unix_ns=BEGAN),
            status=Status(
                ranks=(
                    *(RankView(rank=rank, state=RankState.ACTIVE, since_unix_ns=BEGAN) for rank in range(3)),
                    RankView(rank=3, state=RankState.FENCED, reason="dead: engine exited 137", fenced=13),
                )
            ),
            registrations={
                rank: Registration(rank=rank, incarnation=10 + rank, host=f"host-{rank // 2}", slots=SLOTS, ready=True)
                for rank in range(RANKS)
            },
            placement=placement,
        )
        self.history = [
            PastEpoch(
                decided=msgspec.structs.replace(version, epoch=epoch, members=members[: epoch - 4]),
                fence=42,
                replica="cp-1",
                recovery=f"r-{epoch}",
                decided_unix_ns=BEGAN + epoch * SECOND,
            )
            for epoch in (6, 7)
        ]
        self.recovery = Recovery(
            id="r-1",
            unplanned=True,
            reason="rank 3 is dead",
            epoch_before=6,
            epoch=7,
            left=(3,),
            phases=(
                Phase(name="detect", started_unix_ns=BEGAN, finished_unix_ns=BEGAN + SECOND // 100),
                Phase(name="commit", started_unix_ns=BEGAN + SECOND // 100, finished_unix_ns=BEGAN + SECOND // 2),
            ),
            outcome="done",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )

    def snapshot(self) -> Snapshot:
        return self.current

    async def predict(self, operation):
        self.predicted.append(operation)
        return self.prediction

    def change(self, **fields) -> None:
        self.current = replace(self.current, **fields)

    async def store(self, key, record) -> int:
        return await self.etcd.put(key, encode(record))

    async def write(self) -> None:
        """Put the records where the archive looks for them."""
        epoch_revision = await self.store(self.keys.epoch, self.current.epoch)
        for past in self.history:
            await self.store(self.keys.past(past.decided.epoch), past)
        revision = await self.store(self.keys.recovery(self.recovery.id), self.recovery)
        self.change(epoch_revision=epoch_revision, revision=revision)

    def app(self, tmp_path):
        tokens = tmp_path / "tokens"
        tokens.write_text(TOKENS)
        registry = CollectorRegistry()
        return make_app(
            reader=self,
            archive=self.archive,
            predictor=self,
            authentication=Authentication(tokens=TokenFile(tokens)),
            metrics=ControlPlaneMetrics(registry),
            registry=registry,
        )

    def client(self, tmp_path, *, token=OPERATOR) -> TestClient:
        return TestClient(TestServer(self.app(tmp_path)), headers=as_bearer(token) if token else {})
