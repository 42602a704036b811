"""Structured logs: one JSON object a line for machines, or one readable line for a person.

What a whole task is about (epoch, rank, operation) is bound once with ``bind`` and stands in every line below it; the
trace id is taken from the current span. Under systemd or in a container lines go to stderr without a second time stamp.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, TextIO

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BOUND: ContextVar[Mapping[str, object]] = ContextVar("eep_log_fields", default=MappingProxyType({}))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Add ``fields`` to every line logged inside the block, by this task and those it starts."""
    token = _BOUND.set({**_BOUND.get(), **fields})
    try:
        yield
    finally:
        _BOUND.reset(token)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What is bound, what the call passed by ``extra``, and the trace, in this order."""
    fields = dict(_BOUND.get())
    fields.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        fields["trace_id"] = f"{context.trace_id:032x}"
        fields["span_id"] = f"{context.span_id:016x}"
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the bound fields, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """``LEVEL logger: message field=value …``, an exception below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one line."""
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{record.levelname:<7} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(*, style: LogFormat, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send the root logger's lines to ``stream`` (stderr) in ``style``; replaces what was configured before.

    Raises:
        ValueError: ``level`` is not one of Python's level names.
    """
    if level.upper() not in logging.getLevelNamesMapping():
        known = ", ".join(sorted(logging.getLevelNamesMapping()))
        raise ValueError(f"log level {level!r} is not known; use one of {known}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style is LogFormat.JSON else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
