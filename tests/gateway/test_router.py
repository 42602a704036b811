from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from controlplane.gateway.router import Router, RouterPolicy
from controlplane.gateway.routes import Route, Routes, RouteTable, build
from schemas.records import EpochRecord, EpochVersion, Registration
from schemas.vocabulary import Cut, Member


def table(count, *, draining=()):
    routes = (Route(rank, 1, f"http://rank{rank}", draining=rank in draining) for rank in range(count))
    return RouteTable(epoch=1, routes=tuple(routes))


PROMPT = tuple(range(100))


def test_load_is_spread_evenly():
    router, routes = Router(), table(4)
    for number in range(40):
        prompt = (number,) * 20
        choice = router.choose(prompt, routes, now=0.0)
        router.begin(choice.route, prompt)
    assert {router.load(route.key) for route in routes.routes} == {10}


def test_a_known_prefix_goes_where_it_is_cached_and_says_so():
    router, routes = Router(), table(4)
    first = router.choose(PROMPT, routes, now=0.0).route
    router.begin(first, PROMPT)
    again = router.choose((*PROMPT, 7, 8), routes, now=0.0)
    assert again.route == first
    assert "96 of 102 prompt tokens" in again.reason


def test_a_cache_is_not_worth_any_load():
    router, routes = Router(RouterPolicy(affinity_slack=2)), table(2)
    first = router.choose(PROMPT, routes, now=0.0).route
    for _ in range(3):
        router.begin(first, PROMPT)
    assert router.choose(PROMPT, routes, now=0.0).route != first


def test_a_short_common_beginning_does_not_bind():
    router, routes = Router(), table(2)
    first = router.choose(PROMPT, routes, now=0.0).route
    router.begin(first, PROMPT)
    other = (*PROMPT[:16], *range(500, 600))
    assert router.choose(other, routes, now=0.0).route != first


def test_a_draining_rank_gets_nothing_new():
    assert Router().choose(PROMPT, table(1, draining={0}), now=0.0) is None


def test_a_suspect_is_left_alone_for_a_while_but_a_new_incarnation_is_not():
    router, routes = Router(RouterPolicy(suspect_s=2.0)), table(1)
    router.suspect(routes.routes[0], now=10.0)
    assert router.choose(PROMPT, routes, now=11.0) is None
    assert router.choose(PROMPT, routes, now=12.0) is not None
    restarted = RouteTable(epoch=2, routes=(Route(0, 2, "http://rank0"),))
    router.suspect(routes.routes[0], now=20.0)
    assert router.choose(PROMPT, restarted, now=20.0).route.incarnation == 2


def test_a_process_that_lost_the_request_is_avoided():
    routes = table(2)
    avoid = {routes.routes[0].key}
    assert all(Router().choose(PROMPT, routes, now=0.0, avoid=avoid).route.rank == 1 for _ in range(5))


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_loads_never_go_below_zero_and_count_what_is_under_way(events):
    router, routes, under_way = Router(), table(4), [0] * 4
    for rank, begins in events:
        route = routes.routes[rank]
        if begins:
            router.begin(route, PROMPT)
            under_way[rank] += 1
        else:
            router.end(route)
            under_way[rank] = max(0, under_way[rank] - 1)
    assert [router.load(route.key) for route in routes.routes] == under_way


# --- routes ---------------------------------------------------------------------------------------------------------


def _version(epoch, members):
    return EpochVersion(
        epoch=epoch, members=tuple(Member(*each) for each in members), placement="p", cut=Cut.PLANNED, reason="r"
    )


def _registration(rank, incarnation=1, *, ready=True, leaving=""):
    url = f"http://host:{rank}/"
    return Registration(rank=rank, incarnation=incarnation, host="h", serve_url=url, ready=ready, leaving=leaving)


def test_only_ready_processes_of_the_committed_epoch_serve():
    record = EpochRecord(committed=_version(3, [(0, 1), (1, 2), (2, 1)]))
    registrations = [_registration(0), _registration(1, 1), _registration(2, ready=False), _registration(3)]
    built = build(record, registrations)
    assert (built.epoch, [route.key for route in built.routes]) == (3, [(0, 1)])
    assert built.routes[0].url == "http://host:0"


def test_a_rank_that_leaves_or_is_left_out_of_the_next_epoch_drains():
    record = EpochRecord(committed=_version(3, [(0, 1), (1, 1), (2, 1)]), preparing=_version(4, [(0, 1), (1, 1)]))
    built = build(record, [_registration(0), _registration(1, leaving="SIGTERM"), _registration(2)])
    assert [route.draining for route in built.routes] == [False, True, True]
    assert [route.rank for route in built.open] == [0]


def test_missing_experts_concern_answers_only_where_ranks_go_on_without_them():
    record = EpochRecord(committed=structs.replace(_version(3, [(0, 1), (1, 1)]), missing=5))
    waiting = [_registration(0), _registration(1)]
    assert build(record, waiting).missing == 0
    assert build(record, [structs.replace(each, best_effort=True) for each in waiting]).missing == 5


def test_without_an_epoch_nobody_serves():
    assert build(None, [_registration(0)]).routes == ()


def test_listeners_hear_of_changes_only_and_not_after_they_left():
    routes, heard = Routes(), []
    leave = routes.subscribe(heard.append)
    for change in (table(1), table(1), table(2)):
        routes.replace(change)
    assert heard == [table(1), table(2)]
    leave()
    routes.replace(table(3))
    assert len(heard) == 2
