"""What an ``Etcd`` is: the same tests for real clusters and the in-memory model, so that the model cannot lie."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from controlplane.etcd import (
    CompactedError,
    Delete,
    EventKind,
    Get,
    LeaseNotFoundError,
    Put,
    RejectedError,
    TooLargeError,
    Txn,
    Watch,
    absent,
    created_at,
    unchanged,
)


async def take(changes, count):
    """The next ``count`` changes, within 5 s."""
    async with asyncio.timeout(5):
        return [await anext(changes) for _ in range(count)]


async def test_a_read_gives_revisions_versions_and_key_order(etcd, prefix):
    second = await etcd.put(f"{prefix}b", b"1")
    first = await etcd.put(f"{prefix}a", b"2")
    third = await etcd.put(f"{prefix}b", b"3")
    assert second < first < third
    found = await etcd.get(prefix)
    assert [(kv.key, kv.value) for kv in found] == [(f"{prefix}a", b"2"), (f"{prefix}b", b"3")]
    newer = found.items[1]
    assert (newer.create_revision, newer.mod_revision, newer.version) == (second, third, 2)
    assert found.revision >= third
    assert (await etcd.get(f"{prefix}b")).only == newer
    assert (await etcd.get(f"{prefix}none")).only is None


async def test_a_prefix_ends_at_its_slash(etcd, prefix):
    await etcd.put(f"{prefix}in/1", b"")
    await etcd.put(f"{prefix}in", b"")
    await etcd.put(f"{prefix}inner/1", b"")
    assert [kv.key for kv in await etcd.get(f"{prefix}in/")] == [f"{prefix}in/1"]


async def test_a_read_of_the_past(etcd, prefix):
    old = await etcd.put(f"{prefix}a", b"old")
    await etcd.put(f"{prefix}a", b"new")
    assert (await etcd.get(f"{prefix}a", revision=old)).only.value == b"old"


async def test_compares_decide_between_the_branches(etcd, prefix):
    key = f"{prefix}a"
    create = Txn(when=(absent(key),), then=(Put(key, b"1"),), otherwise=(Get(key),))
    made = await etcd.txn(create)
    assert made.succeeded
    again = await etcd.txn(create)
    assert not again.succeeded
    assert again.replies[0].only.value == b"1"
    for guard, holds in [
        (unchanged(key, made.revision), True),
        (unchanged(key, made.revision - 1), False),
        (created_at(key, made.revision), True),
        (created_at(key, made.revision - 1), False),
        (unchanged(key, 0), False),
        (absent(f"{prefix}b"), True),
        (unchanged(f"{prefix}b", 0), True),
    ]:
        assert (await etcd.txn(Txn(when=(guard,)))).succeeded is holds, guard


async def test_a_transaction_is_one_revision_and_reads_its_own_writes(etcd, prefix):
    await etcd.put(f"{prefix}old", b"")
    both = Txn(then=(Delete(f"{prefix}old"), Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"2"), Get(prefix)))
    done = await etcd.txn(both)
    assert [kv.key for kv in done.replies[3]] == [f"{prefix}a", f"{prefix}b"]
    assert {kv.mod_revision for kv in done.replies[3]} == {done.revision}


async def test_a_transaction_may_not_put_a_key_twice(etcd, prefix):
    with pytest.raises(RejectedError):
        await etcd.txn(Txn(then=(Put(f"{prefix}a", b"1"), Put(f"{prefix}a", b"2"))))
    assert not (await etcd.get(prefix)).items


async def test_the_create_revision_tells_a_key_from_its_successor(etcd, prefix):
    first = await etcd.put(f"{prefix}a", b"same")
    await etcd.delete(f"{prefix}a")
    second = await etcd.put(f"{prefix}a", b"same")
    found = (await etcd.get(f"{prefix}a")).only
    assert first < found.create_revision == second
    assert found.version == 1


async def test_a_delete_of_nothing_takes_no_revision(etcd, prefix):
    before = await etcd.put(f"{prefix}a", b"")
    assert await etcd.delete(f"{prefix}none") >= before
    deleted = await etcd.delete(prefix)
    assert deleted > before
    assert not (await etcd.get(prefix)).items


async def test_a_watch_delivers_the_listing_and_then_every_revision_once(etcd, prefix):
    await etcd.put(f"{prefix}a", b"0")
    watch = Watch(etcd, prefix)
    async with aclosing(watch.changes()) as changes:
        (listing,) = await take(changes, 1)
        assert listing.relisted
        assert [event.key for event in listing.events] == [f"{prefix}a"]
        revisions = [await etcd.put(f"{prefix}a", b"%d" % step) for step in range(1, 30)]
        revisions.append(await etcd.delete(f"{prefix}a"))
        seen = await take(changes, 30)
        assert [change.revision for change in seen] == revisions
        assert [change.events[0].item.value for change in seen] == [b"%d" % step for step in range(1, 30)] + [b""]
        assert seen[-1].events[0].kind is EventKind.DELETE
        assert seen[-1].events[0].item.mod_revision == revisions[-1]
        assert not watch.items


async def test_a_watch_keeps_one_revision_together(etcd, prefix):
    async with aclosing(Watch(etcd, prefix).changes()) as changes:
        await take(changes, 1)
        keys = [f"{prefix}{index:03d}" for index in range(100)]
        done = await etcd.txn(Txn(then=tuple(Put(key, bytes(1000)) for key in keys)))
        (change,) = await take(changes, 1)
        assert change.revision == done.revision
        assert sorted(event.key for event in change.events) == keys


async def test_a_watch_of_one_key_hears_nothing_else(etcd, prefix):
    async with aclosing(Watch(etcd, f"{prefix}a").changes()) as changes:
        await take(changes, 1)
        await etcd.put(f"{prefix}ab", b"other")
        await etcd.put(f"{prefix}a/b", b"other")
        wanted = await etcd.put(f"{prefix}a", b"")
        assert [change.revision for change in await take(changes, 1)] == [wanted]


async def test_a_watch_from_a_past_revision_delivers_the_history(etcd, prefix):
    revisions = [await etcd.put(f"{prefix}a", b"%d" % step) for step in range(5)]
    async with aclosing(Watch(etcd, prefix, after=revisions[1]).changes()) as changes:
        assert [change.revision for change in await take(changes, 3)] == revisions[2:]


async def test_a_watch_from_a_compacted_revision_says_so(etcd, prefix):
    old = await etcd.put(f"{prefix}a", b"1")
    await etcd.put(f"{prefix}a", b"2")
    now = await etcd.put(f"{prefix}a", b"3")
    await etcd.compact(now)
    await etcd.compact(now)  # a second time is fine: several replicas may do it
    assert (await etcd.get(f"{prefix}a", revision=now)).only.value == b"3"
    with pytest.raises(RejectedError):
        await etcd.get(f"{prefix}a", revision=now + 1_000_000)
    with pytest.raises(RejectedError):
        await etcd.compact(now + 1_000_000)
    async with aclosing(Watch(etcd, prefix, after=now - 1).changes()) as changes:
        assert [change.revision for change in await take(changes, 1)] == [now]
    with pytest.raises(CompactedError):
        await etcd.get(f"{prefix}a", revision=old)
    async with aclosing(Watch(etcd, prefix, after=old).changes()) as changes:
        with pytest.raises(CompactedError):
            await take(changes, 1)


async def test_a_lease_takes_its_keys_along(etcd, prefix):
    grant = await etcd.grant(60)
    assert grant.ttl_s >= 60
    await etcd.put(f"{prefix}a", b"", lease=grant.lease)
    await etcd.put(f"{prefix}b", b"", lease=grant.lease)
    assert (await etcd.get(f"{prefix}a")).only.lease == grant.lease
    assert await etcd.keep_alive(grant.lease, within_s=2) >= 60
    async with aclosing(Watch(etcd, prefix).changes()) as changes:
        await take(changes, 1)
        await etcd.revoke(grant.lease)
        (change,) = await take(changes, 1)
        assert sorted(event.key for event in change.events) == [f"{prefix}a", f"{prefix}b"]
        assert {event.kind for event in change.events} == {EventKind.DELETE}
    await etcd.revoke(grant.lease)  # a second time is fine
    with pytest.raises(LeaseNotFoundError):
        await etcd.keep_alive(grant.lease, within_s=2)
    with pytest.raises(LeaseNotFoundError):
        await etcd.put(f"{prefix}a", b"", lease=grant.lease)
    with pytest.raises(LeaseNotFoundError):
        await etcd.txn(Txn(then=(Put(f"{prefix}a", b"", grant.lease),)))


async def test_a_put_without_the_lease_frees_the_key_from_it(etcd, prefix):
    grant = await etcd.grant(60)
    await etcd.put(f"{prefix}a", b"", lease=grant.lease)
    await etcd.put(f"{prefix}a", b"")
    await etcd.revoke(grant.lease)
    assert (await etcd.get(f"{prefix}a")).only is not None


async def test_a_lease_that_nobody_keeps_ends(etcd, prefix):
    grant = await etcd.grant(1)
    await etcd.put(f"{prefix}a", b"", lease=grant.lease)
    async with aclosing(Watch(etcd, prefix).changes()) as changes:
        await take(changes, 1)
        async with asyncio.timeout(grant.ttl_s + 3):
            change = await anext(changes)
    assert change.events[0].kind is EventKind.DELETE


async def test_what_etcd_would_refuse_is_refused_here_with_the_key(etcd, prefix):
    with pytest.raises(TooLargeError, match="129 operations"):
        await etcd.txn(Txn(then=tuple(Put(f"{prefix}{index}", b"") for index in range(129))))
    with pytest.raises(TooLargeError, match=prefix):
        await etcd.put(f"{prefix}big", bytes(1_572_864))
    with pytest.raises(TooLargeError, match=prefix):
        await etcd.txn(Txn(then=(Put(f"{prefix}big", bytes(1_572_864)),)))
    largest = 1_572_864 - 1024
    assert await etcd.put(f"{prefix}big", bytes(largest))
    assert await etcd.txn(Txn(then=tuple(Put(f"{prefix}{index}", b"") for index in range(128))))
