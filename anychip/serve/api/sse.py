"""Server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from .answers import Running
from .call import Call
from .errors import error_body, from_exception, is_anthropic
from .log import Log

PING = b": ping\n\n"  # a comment: keeps proxies from closing a connection that waits
DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """Return one event. JSON has no line ends, so it is one line of data."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


async def guarded(events: AsyncIterator[bytes], running: Running, call: Call, log: Log) -> AsyncIterator[bytes]:
    """Pass events on; end with an error event where they fail, and end the work where the client leaves."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        found = from_exception(error)
        if found.status == 500:
            log.failure(error, {"id": call.request_id, "path": call.path}, (call.secret,))
        call.finish = f"error {found.status}"
        yield event(error_body(found, call.path, call.request_id), "error" if is_anthropic(call.path) else None)
    finally:
        if call.finish is None:
            call.disconnected = True
        running.abort()


def stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Return the response that sends events as they come; the client's leaving cancels them."""
    return StreamingResponse(events, media_type="text/event-stream",
                             headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
