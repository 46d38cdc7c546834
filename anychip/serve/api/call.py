"""One HTTP request's record: who sent it, and what the handlers found out for the log and the metrics."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from .keys import Key, Usage


class Disconnected(Exception):
    """The client has gone: nobody reads an answer any more."""


@dataclass
class Call:
    """Filled in along the way; read when the answer is complete. Times are of time.perf_counter()."""

    method: str
    path: str
    request_id: str = field(default_factory=lambda: "req_" + uuid.uuid4().hex[:24])
    started: float = field(default_factory=time.perf_counter)
    secret: str = ""  # the key as presented, to be taken out of a traceback
    key: Key | None = None
    usage: Usage | None = None
    status: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None
    streamed: bool | None = None
    finish: str | None = None
    malformed: str | None = None
    disconnected: bool | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request's arrival to its first token."""
        return None if self.first_token is None else self.first_token - self.started

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first, over all answers of the request."""
        if self.first_token is None or self.last_token is None or self.new_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.new_tokens - 1)

    def token(self) -> None:
        """Note that a token has come."""
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token
        self.new_tokens += 1

    def fields(self) -> dict[str, Any]:
        """Return what the log keeps."""
        return {"id": self.request_id, "method": self.method, "path": self.path, "status": self.status or None,
                "key": self.key.name if self.key else None, "prompt_tokens": self.prompt_tokens or None,
                "cached_tokens": self.cached_tokens or None, "new_tokens": self.new_tokens or None,
                "ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "duration_s": time.perf_counter() - self.started,
                "stream": self.streamed, "finish": self.finish, "malformed_call": self.malformed is not None or None,
                "disconnected": self.disconnected}
