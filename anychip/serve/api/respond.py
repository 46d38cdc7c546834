"""One answer's way out, the same for every dialect: whole as JSON, or as events while it is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from . import sse
from .answers import Running, unless_gone
from .call import Call
from .log import Log


async def respond(running: Running, http: HttpRequest, log: Log, *, whole: Callable[[], Awaitable[Any]],
                  events: Callable[[], AsyncIterator[bytes]]) -> Response:
    """Start the work and return its answer, as events where the call asked for a stream.

    The work ends where the client leaves. Raises what starting raises (Busy, InputError), and for a whole answer
    ApiError and EngineError too.
    """
    call: Call = http.scope["call"]
    await running.start()
    if call.streamed:
        return sse.stream(sse.guarded(events(), running, call, log))
    try:
        return JSONResponse(await unless_gone(http.receive, whole()))
    finally:
        running.abort()
