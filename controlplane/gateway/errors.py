"""Everything the gateway says no with. One root; each class is one HTTP status and says what the client can do."""

from __future__ import annotations

from typing import Any, ClassVar


class GatewayError(Exception):
    """An answer that is an error, in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``.

    Attributes:
        message: for a person: what is wrong, with field and value, and the remedy.
        field: the request's field at fault, empty when none is.
        retry_after_s: when it makes sense to try again; 0 for never.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

    def as_json(self) -> dict[str, Any]:
        """The answer's body."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.field or None,
                "code": self.code,
                "retryable": self.retry_after_s > 0,
            }
        }


class BadRequestError(GatewayError):
    """A field is missing or has an impossible value: correct it."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedError(GatewayError):
    """A field whose meaning could not be kept if the request had to change ranks: leave it out."""

    status = 400
    type = "invalid_request_error"
    code = "unsupported_parameter"


class ModelNotFoundError(GatewayError):
    """Another model was asked for than the one that is served: see ``/v1/models``."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class RefusedByRankError(GatewayError):
    """A rank's SGLang found the request invalid: its message says why."""

    status = 400
    type = "invalid_request_error"
    code = "refused_by_rank"


class BusyError(GatewayError):
    """The queue is full: try again after ``Retry-After``."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class UnavailableError(GatewayError):
    """No rank can take the request now: try again after ``Retry-After``."""

    status = 503
    type = "service_unavailable"
    code = "no_rank"


class DeadlineError(GatewayError):
    """The request's deadline passed before its answer was complete."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class GivenUpError(GatewayError):
    """Rank after rank died while it worked on this request; sending it again would take down more."""

    status = 502
    type = "server_error"
    code = "request_given_up"
