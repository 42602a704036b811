"""Traces leave a real process, and only when the standard variables ask for it."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from controlplane.telemetry import trace_id_of
from controlplane.telemetry.tracing import endpoint_configured
from tests.telemetry.otlp_sink import otlp_sink

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

STORY = """
import sys, time
from controlplane.telemetry import Tracing, current_traceparent, link_to, names, span
from controlplane.telemetry.tracing import past_span
tracing = Tracing.start(service="eep-controlplane", instance_id="cp-1")
with span(names.RECOVERY, attributes={names.RANK: 3}):
    record = current_traceparent()
now = time.time_ns()
prepare = past_span(names.PREPARE, parent=record, start_unix_ns=now - 50, end_unix_ns=now)
past_span(names.LOAD, parent=prepare, start_unix_ns=now, end_unix_ns=now - 10**9)
with span(names.ELECTION, links=link_to(record)):
    pass
print(record)
sys.exit(not tracing.stop(deadline_s=5))
"""


async def run_story(story: str = STORY, **environment: str) -> tuple[int, str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        story,
        env={**clean, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, out.decode().strip(), err.decode()


async def test_spans_of_one_record_stand_in_one_trace():
    async with otlp_sink() as sink:
        code, record, err = await run_story(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url)
        assert code == 0, err
        spans = {span.name: span for span in sink.spans}
    recovery, prepare, load = spans["eep.recovery"], spans["eep.prepare"], spans["eep.load"]
    assert trace_id_of(record) == recovery.trace_id == prepare.trace_id == load.trace_id
    assert recovery.parent_id == ""
    assert prepare.parent_id == recovery.span_id
    assert load.parent_id == prepare.span_id
    assert prepare.end_ns - prepare.start_ns == 50
    assert load.end_ns == load.start_ns  # a clock that ran backwards must not give a negative span
    assert recovery.attributes == {"eep.rank": 3}
    assert (recovery.service, recovery.instance_id) == ("eep-controlplane", "cp-1")


async def test_a_successors_span_links_to_the_recovery_it_takes_over():
    async with otlp_sink() as sink:
        await run_story(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url)
        spans = {span.name: span for span in sink.spans}
    recovery = spans["eep.recovery"]
    assert spans["eep.election"].links == ((recovery.trace_id, recovery.span_id),)
    assert spans["eep.election"].trace_id != recovery.trace_id


async def test_without_an_endpoint_nothing_is_sent_and_nothing_is_said():
    code, record, err = await run_story()
    assert (code, record, err) == (0, "", "")


HURRIED = """
import time
from controlplane.telemetry import Tracing, names, span
tracing = Tracing.start(service="eep-controlplane", instance_id="cp-1")
with span(names.RECOVERY):
    pass
began = time.monotonic()
print(tracing.stop(deadline_s=0.5), time.monotonic() - began)
"""


async def test_a_dead_endpoint_delays_the_end_by_no_more_than_the_deadline():
    code, said, _ = await run_story(HURRIED, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    done, seconds = said.split()
    assert (code, done) == (0, "False")
    assert 0.5 <= float(seconds) < 2  # the SDK's own retries go on for ten seconds


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_only_the_standard_variables_decide(environment, wanted):
    assert endpoint_configured(environment) is wanted


@pytest.mark.parametrize("damaged", ["", "garbage", PARENT[:-5], PARENT.replace("0af7", "zzzz")])
def test_a_damaged_traceparent_gives_no_trace_id(damaged):
    assert trace_id_of(damaged) == ""


def test_trace_id_is_what_a_viewer_searches_for():
    assert trace_id_of(PARENT) == "0af7651916cd43dd8448eb211c80319c"
