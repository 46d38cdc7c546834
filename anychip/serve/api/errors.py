"""Refusals and failures as the clients of each dialect expect them."""

from __future__ import annotations

import json
import math
from typing import Any

from ...errors import AnychipError, InputError
from ..request import Busy, EngineError

_OPENAI = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
           408: "timeout_error", 409: "conflict_error", 413: "invalid_request_error", 429: "rate_limit_error"}
_ANTHROPIC = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
              404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error", 413: "request_too_large",
              429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}


class ApiError(Exception):
    """An answer other than 200: its status, what was wrong in words, and the field or code where there is one."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """Return Retry-After, in whole seconds, where waiting helps."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


def from_exception(error: BaseException) -> ApiError:
    """Return the answer to an exception. Of a bug, clients get no words: those are in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="rate_limit_exceeded", retry_after_s=error.retry_after_s)
    if isinstance(error, EngineError):
        return ApiError(503, "the engine stopped while this request was in flight; send it again",
                        code="engine_stopped", retry_after_s=1)
    if isinstance(error, (InputError, AnychipError)):
        return ApiError(400, str(error), code=_code_of(str(error)))
    return ApiError(500, "internal error; the server's log has its traceback under this answer's x-request-id")


def _code_of(message: str) -> str | None:
    return "context_length_exceeded" if "fit" in message and "tokens" in message else None


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's dialect."""
    return path.startswith("/v1/messages")


def error_body(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    """Return the body of an error in the dialect of the path."""
    if is_anthropic(path):
        kind = _ANTHROPIC.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
    kind = _OPENAI.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_bytes(error: ApiError, path: str, request_id: str) -> bytes:
    """Return `error_body` as JSON."""
    return json.dumps(error_body(error, path, request_id), ensure_ascii=False).encode("utf-8", "replace")
