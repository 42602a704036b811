"""A line carries what its task is about."""

from __future__ import annotations

import io
import json
import logging

import pytest
from opentelemetry import trace

from controlplane.telemetry import LogFormat, bind, configure_logging

SPAN = trace.NonRecordingSpan(trace.SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False))


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def lines(style, *, level="INFO"):
    stream = io.StringIO()
    configure_logging(style=style, level=level, stream=stream)
    return stream


def test_json_lines_carry_bound_fields_extras_and_the_trace(root_logger):
    stream = lines(LogFormat.JSON)
    with bind(epoch=7), bind(rank=3), trace.use_span(SPAN):
        logging.getLogger("eep.test").warning("rank %d is silent", 3, extra={"evidence": "silent"})
    logging.getLogger("eep.test").info("after")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "rank 3 is silent"
    assert (first["level"], first["logger"]) == ("warning", "eep.test")
    assert (first["epoch"], first["rank"], first["evidence"]) == (7, 3, "silent")
    assert first["trace_id"] == f"{0xABC:032x}"
    assert {"epoch", "rank", "trace_id"}.isdisjoint(second)


@pytest.mark.parametrize("style", list(LogFormat))
def test_an_exception_is_shown_with_its_traceback(root_logger, style):
    stream = lines(style)
    logging.getLogger("eep.test").error("load failed", exc_info=RuntimeError("why it failed"))
    assert "load failed" in stream.getvalue()
    assert "RuntimeError: why it failed" in stream.getvalue()


def test_text_lines_are_for_people(root_logger):
    stream = lines(LogFormat.TEXT)
    with bind(epoch=7):
        logging.getLogger("eep.test").info("committed")
    assert stream.getvalue() == "INFO    eep.test: committed epoch=7\n"


def test_level_filters_and_an_unknown_one_is_refused_by_name(root_logger):
    stream = lines(LogFormat.TEXT, level="error")
    logging.getLogger("eep.test").warning("not shown")
    assert stream.getvalue() == ""
    with pytest.raises(ValueError, match=r"'loud'.*WARNING"):
        configure_logging(style=LogFormat.TEXT, level="loud")
