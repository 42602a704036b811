"""The way of an answer's tokens out of the scheduler.

SGLang sends every token through a process that turns ids into text. The gateway does that itself, because a character
or a stop string may straddle a change of ranks; for its requests the way through that process is work for nothing, and
a hop more for every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from schemas.vocabulary import IDS_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Output:
    """Sends answers that are wanted as ids straight to the process that serves HTTP."""

    def __init__(self) -> None:
        self._http: Any = None

    def open(self, scheduler: Any) -> None:
        """Learn where that process listens; until then, everything goes SGLang's way."""
        self._http = scheduler.ipc_channels.send_to_tokenizer

    def stream(
        self,
        original: Callable[..., None],
        streamer: Any,
        reqs: Sequence[Any],
        return_logprob: bool,  # noqa: FBT001  # SGLang's
        skip_req: Any = None,
    ) -> None:
        """SchedulerOutputStreamer.stream_output: the batch in two parts, each its own way."""
        short = [req for req in reqs if _ids_only(req)] if self._http is not None else []
        if len(short) < len(reqs):
            rest = [req for req in reqs if not _ids_only(req)] if short else reqs
            original(streamer, rest, return_logprob, skip_req)
        if short:
            usual, streamer.send_to_detokenizer = streamer.send_to_detokenizer, self._http
            try:
                original(streamer, short, return_logprob, skip_req)
            finally:
                streamer.send_to_detokenizer = usual


def _ids_only(req: Any) -> bool:
    """Whether whoever asked makes the text; SGLang carries ``custom_params`` along and does nothing with ours."""
    return bool((req.sampling_params.custom_params or {}).get(IDS_ONLY))
