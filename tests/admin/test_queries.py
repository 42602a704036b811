"""What is shown: the instance, its ranks, its past."""

from __future__ import annotations

import pytest

from controlplane.admin.reading import capacity
from controlplane.coordinator.cluster import headroom
from schemas.operations import Operation, OperationKind
from schemas.placement import EMPTY, Placement
from schemas.records import Ack, EpochVersion
from schemas.vocabulary import Cut
from tests.admin.instance import EXPERTS, SLOTS


async def got(api, path, status=200):
    answer = await api.get(path)
    assert answer.status == status, await answer.text()
    return await answer.json()


async def test_the_cluster_on_one_page(api):
    answer = await api.get("/v1/cluster")
    page = await answer.json()
    assert answer.headers["ETag"] == '"7"'
    assert answer.headers["Cache-Control"] == "no-store"
    assert (page["epoch"], page["members"], page["reason"]) == (7, [0, 1, 2], "rank 3 is dead")
    assert page["states"] == {"active": 3, "fenced": 1}
    assert page["leader"] == {"replica": "cp-1", "admin_url": "http://127.0.0.1:1", "fence": 42}
    assert (page["missing"], page["capacity"], page["preparing"]) == (0, 1, None)
    assert page["decided_at"] == "2023-11-14T22:13:20.000Z"


async def test_a_planned_change_shows_whom_it_waits_for(api, instance):
    record = instance.current.epoch
    preparing = EpochVersion(
        epoch=8, members=record.committed.members[:2], placement="", cut=Cut.PLANNED, reason="drain of 2", cause="op-1"
    )
    acks = {
        0: Ack(rank=0, incarnation=10, epoch=8, prepared=True),
        1: Ack(rank=1, incarnation=11, epoch=7, prepared=True),
    }
    instance.change(epoch=type(record)(committed=record.committed, preparing=preparing), acks=acks)
    page = await got(api, "/v1/cluster")
    assert page["preparing"] == {
        "epoch": 8,
        "members": [0, 1],
        "reason": "drain of 2",
        "cause": "op-1",
        "prepared": [0],
        "waiting_for": [1, 2],
    }


async def test_before_the_first_epoch_the_page_says_so(api, instance):
    instance.change(epoch=None, placement=None, leader=None, leading=False)
    page = await got(api, "/v1/cluster")
    assert (page["epoch"], page["members"], page["leader"]) == (0, [], None)
    assert len((await got(api, "/v1/ranks"))["ranks"]) == 4


async def test_ranks_in_order_with_reasons(api):
    rows = (await got(api, "/v1/ranks"))["ranks"]
    assert [row["rank"] for row in rows] == [0, 1, 2, 3]
    assert rows[3]["state"] == "fenced"
    assert rows[3]["reason"] == "dead: engine exited 137"
    assert (rows[0]["host"], rows[0]["experts"], rows[3]["experts"]) == (
        "host-0",
        4,
        0,
    )  # the second copy of an expert on one rank would survive nothing
    assert (await got(api, "/v1/ranks/3")) == rows[3]


@pytest.mark.parametrize(("path", "status"), [("9", 404), ("128", 400), ("-1", 400), ("x", 400), ("01", 400)])
async def test_a_rank_that_is_none_is_named(api, path, status):
    problem = await got(api, f"/v1/ranks/{path}", status)
    assert problem["field"] == "path.rank"
    assert str(problem["value"]) == path
    assert problem["remedy"]


async def test_epochs_newest_first_and_one_by_number(api):
    rows = (await got(api, "/v1/epochs"))["epochs"]
    assert [row["epoch"] for row in rows] == [7, 6]
    assert (await got(api, "/v1/epochs?limit=1"))["epochs"] == rows[:1]
    assert (await got(api, "/v1/epochs/6")) == rows[1]
    assert (await got(api, "/v1/epochs/99", 404))["field"] == "path.epoch"


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1", ""])
async def test_a_limit_out_of_range_is_refused(api, limit):
    assert (await got(api, f"/v1/operations?limit={limit}", 400))["field"] == "query.limit"


async def test_a_recovery_has_phases_and_a_trace(api):
    row = (await got(api, "/v1/recoveries"))["recoveries"][0]
    assert row == await got(api, "/v1/recoveries/r-1")
    assert [(phase["name"], phase["seconds"]) for phase in row["phases"]] == [("detect", 0.01), ("commit", 0.49)]
    assert row["seconds"] == 0.5
    assert row["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert (await got(api, "/v1/recoveries/none", 404))["value"] == "none"


async def test_operations_newest_first(api, instance):
    for number in (1, 2):
        operation = Operation(
            id=f"op-{number}", kind=OperationKind.CORDON, who="a", reason="b", ranks=(1,), created_unix_ns=number
        )
        await instance.store(instance.keys.operation(operation.id), operation)
    rows = (await got(api, "/v1/operations"))["operations"]
    assert [row["id"] for row in rows] == ["op-2", "op-1"]
    assert (await got(api, "/v1/operations/op-2")) == rows[0]


async def test_health_follows_etcd_and_leadership(api, instance):
    assert (await got(api, "/livez"))["ok"]
    assert (await got(api, "/readyz"))["ok"]
    assert (await got(api, "/leader"))["ok"]
    instance.change(connected=False, leading=False)
    assert (await got(api, "/livez"))["ok"]
    await got(api, "/readyz", 503)
    assert (await got(api, "/leader", 503))["leader_url"] == "http://127.0.0.1:1"


async def test_metrics_count_requests_by_route(api):
    await got(api, "/v1/ranks/3")
    text = await (await api.get("/metrics")).text()
    assert 'eep_admin_requests_total{method="GET",route="/v1/ranks/{rank}",status="200"} 1.0' in text


def placed(*ranks):
    """One layer; each argument is what one rank holds."""
    import numpy as np

    width = max(map(len, ranks))
    slots = np.array([[[*held, *[EMPTY] * (width - len(held))] for held in ranks]], dtype=np.uint16)
    return Placement(slots=slots, weights=np.where(slots == EMPTY, 0, 1).astype(np.uint16), n_experts=2)


@pytest.mark.parametrize(
    ("ranks", "active", "left"),
    [
        (((0, 1), (0, 1), (0, 1)), (0, 1, 2), 2),
        (((0, 1), (0, 1), (0, 1)), (0, 2), 1),
        (((0, 1), (0,), (0,)), (0, 1, 2), 0),
        (((0, 0), (1, 1)), (0, 1), 0),  # two copies on one rank survive nothing
        (((0, 1), (0,)), (1,), 0),  # an expert is missing already
    ],
)
def test_headroom_is_what_the_rarest_expert_survives(ranks, active, left):
    assert headroom(placed(*ranks), active) == left


def test_capacity_counts_slots_not_copies():
    placement = Placement.round_robin(layers=1, experts=EXPERTS, ranks=range(4), max_ranks=4, slots=SLOTS)
    assert capacity(placement, range(4)) == 2
    assert capacity(placement, range(1)) == 0
