"""Reading requests: typed fields, and an error that names the field for everything else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from controlplane.gateway.errors import BadRequestError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

_STATEFUL = "it keeps state on the rank that another rank could not continue exactly"
_ELSEWHERE = "this gateway serves text in, text out"
UNSUPPORTED: Mapping[str, str] = {
    **dict.fromkeys(("json_schema", "regex", "ebnf", "structural_tag", "stop_regex"), f"grammars: {_STATEFUL}"),
    **dict.fromkeys(("custom_params", "custom_logit_processor", "session_params", "beam_width"), _STATEFUL),
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"), _ELSEWHERE),
    **dict.fromkeys(("image_data", "video_data", "audio_data", "input_embeds", "modalities", "audio"), _ELSEWHERE),
    **dict.fromkeys(("lora_path", "lora_id", "watermark", "return_hidden_states", "return_routed_experts"), _ELSEWHERE),
    "suffix": _ELSEWHERE,
    "best_of": "use n",
    "token_ids_logprob": "use top_logprobs",
    "prediction": _ELSEWHERE,
    "reasoning_effort": _ELSEWHERE,
    "web_search_options": _ELSEWHERE,
}
"""Fields that are known and refused, each with its reason."""
IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
    | {"log_metrics", "no_logs", "priority", "stream_interval", "spaces_between_special_tokens"}
    | {"session_id", "return_text_in_logprobs", "background"}
)
"""Fields that change nothing about the answer's tokens."""
_EMPTY: tuple[object, ...] = (None, False, "", [], {}, "none")


def read(body: Mapping[str, Any], kind: type[T]) -> T:
    """``body`` as ``kind``.

    Raises:
        UnsupportedError: it uses a field that is refused.
        BadRequestError: a field is unknown, missing or of the wrong type.
    """
    for name, why in UNSUPPORTED.items():
        if body.get(name) not in _EMPTY:
            raise UnsupportedError(f"{name} is not supported: {why}; leave it out", field=name)
    known = {
        name: value
        for name, value in body.items()
        if name not in IGNORED and name not in UNSUPPORTED and value is not None
    }
    try:
        return msgspec.convert(known, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from error


def _named(problem: str) -> BadRequestError:
    what, _, place = problem.partition(" - at `$")
    found = re.search(r"field `([^`]+)`", what) if "field `" in what else None
    field = found.group(1) if found else place.strip("`.").split("[")[0].split(".")[0]
    return BadRequestError(f"{field}: {what}" if field else what, field=field)


def between(name: str, value: float, low: float, high: float) -> None:
    """Check a number.

    Raises:
        BadRequestError: it is not in [low, high].
    """
    if not low <= value <= high:
        raise BadRequestError(f"{name} is {value}, it must be between {low} and {high}", field=name)


def strings(name: str, value: str | list[str] | None, *, most: int) -> tuple[str, ...]:
    """A string or a list of strings.

    Raises:
        BadRequestError: one is empty, or there are more than ``most``.
    """
    found = (value,) if isinstance(value, str) else tuple(value or ())
    if len(found) > most:
        raise BadRequestError(f"{name} has {len(found)} strings, at most {most} are allowed", field=name)
    if not all(found):
        raise BadRequestError(f"{name} has an empty string", field=name)
    return found
