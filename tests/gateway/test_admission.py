import asyncio
import json

import pytest

from controlplane.gateway.admission import Admission
from controlplane.gateway.audit import Audit, Ending
from controlplane.gateway.errors import BusyError, GivenUpError, UnavailableError
from controlplane.gateway.job import Job


async def test_those_who_wait_are_admitted_in_their_order():
    admission, order = Admission(most_running=1, most_queued=3), []

    async def enter(name):
        async with admission.admitted(wait_s=5):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(enter(name) for name in "abcd"))
    assert order == list("abcd")
    assert (admission.running, admission.queued) == (0, 0)


async def test_the_queue_is_bounded_and_so_is_the_wait():
    admission = Admission(most_running=1, most_queued=1)
    async with admission.admitted(wait_s=5):
        with pytest.raises(UnavailableError, match="overloaded"):
            async with admission.admitted(wait_s=0.01):
                pass
        waiting = asyncio.create_task(admission.admitted(wait_s=5).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as refused:
            async with admission.admitted(wait_s=5):
                pass
        assert refused.value.retry_after_s > 0
        assert "1 requests run and 1 wait" in str(refused.value)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with admission.admitted(wait_s=0.01):
        assert admission.running == 1


async def test_nobody_is_admitted_while_it_closes():
    admission = Admission(most_running=1, most_queued=1)
    await admission.close(wait_s=0.01)
    with pytest.raises(UnavailableError, match="stopping"):
        async with admission.admitted(wait_s=1):
            pass


def _job(name):
    return Job(name, "generate", (), stream=False, presenter=None)


def test_each_accepted_request_ends_once_whoever_says_so(tmp_path):
    audit = Audit(tmp_path / "logs" / "audit.jsonl")
    entry = audit.accept(_job("a"), now=1.0)
    entry.token(1.5)
    entry.token(1.75)
    assert audit.open_entries == 1
    audit.end(entry, Ending.FAILED, [], now=2.0, error=GivenUpError("two ranks died"))
    audit.end(entry, Ending.COMPLETED, [], now=3.0)
    assert audit.open_entries == 0
    accepted, ended = (json.loads(line) for line in (tmp_path / "logs" / "audit.jsonl").read_text().splitlines())
    assert (accepted["event"], accepted["id"]) == ("accepted", "a")
    assert (ended["ending"], ended["seconds"], ended["longest_gap_ms"]) == ("failed", 1.0, 250.0)
    assert ended["error"] == {"code": "request_given_up", "status": 502, "message": "two ranks died"}
    audit.close()


def test_several_gateways_may_share_a_file(tmp_path):
    path = tmp_path / "audit.jsonl"
    audits = [Audit(path) for _ in range(3)]
    for number in range(30):
        audits[number % 3].accept(_job(str(number)), now=0.0)
    assert sorted(int(json.loads(line)["id"]) for line in path.read_text().splitlines()) == list(range(30))
    for audit in audits:
        audit.close()
