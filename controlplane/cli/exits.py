"""What can go wrong, and the exit code that tells a script which it was."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class Exit(IntEnum):
    """Exit codes; stable, because scripts branch on them."""

    OK = 0
    REFUSED = 1
    """The API refused the request: not found, conflict, precondition, bad value."""
    USAGE = 2
    """The command line is wrong, or a question needed an answer and there was no terminal to ask at."""
    UNREACHABLE = 3
    """No endpoint answered, or none of them knows a leader."""
    DENIED = 4
    """No token, an unknown one, or one whose role does not suffice."""
    FAILED = 5
    """The operation was performed but ended refused, failed or cancelled."""
    DEADLINE = 6
    """--wait ran out of time; the operation goes on."""
    UNHEALTHY = 7
    """``doctor`` found something that needs a person."""


class CliError(Exception):
    """Root of what ends a command; ``code`` is its exit code."""

    code: ClassVar[Exit] = Exit.REFUSED


class UsageError(CliError):
    """A flag, an environment variable or the configuration file is wrong; the message names it."""

    code = Exit.USAGE


class UnreachableError(CliError):
    """Nobody answered: check --endpoint, EEP_ENDPOINTS, and that the control plane runs."""

    code = Exit.UNREACHABLE


class DeadlineError(CliError):
    """Waiting is over; what was waited for is not. ``eepctl ops`` shows how it goes on."""

    code = Exit.DEADLINE


class FailedError(CliError):
    """The operation ended, but not done."""

    code = Exit.FAILED


class RefusedError(CliError):
    """The API's own refusal, with the field, the value and the remedy that it names."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.problem = problem
        super().__init__(_told(problem))


class DeniedError(RefusedError):
    """401 or 403."""

    code = Exit.DENIED


def _told(problem: dict[str, Any]) -> str:
    lines = [str(problem.get("detail") or problem.get("error") or "refused")]
    if problem.get("field"):
        value = f" = {problem['value']!r}" if problem.get("value") is not None else ""
        lines.append(f"  field: {problem['field']}{value}")
    if "headroom_after" in problem:
        lines.append(f"  headroom: {problem['headroom_before']} → {problem['headroom_after']}")
    if problem.get("remedy"):
        lines.append(f"  remedy: {problem['remedy']}")
    return "\n".join(lines)
