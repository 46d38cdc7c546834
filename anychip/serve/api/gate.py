"""What every HTTP request passes: host, key, limits, body; and what every answer gets: headers, a log line, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .call import Call, Disconnected
from .errors import ApiError, error_bytes, from_exception
from .keys import Usage
from .log import Log
from .metrics import Metrics
from .settings import ApiSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Served without a key: that the server is up, and the page, which holds nothing but its own text.
OPEN_PATHS = frozenset({"/", "/health", "/chat.css", "/chat.js", "/chat-text.js", "/chat-panel.js"})
_CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
            (b"content-security-policy", _CSP.encode()), (b"x-frame-options", b"DENY"))
_CORS = ((b"access-control-allow-headers",
          b"authorization, content-type, x-api-key, anthropic-version, anthropic-beta"),
         (b"access-control-allow-methods", b"GET, POST, OPTIONS"), (b"access-control-max-age", b"600"))


class Gate:
    """An ASGI application around the API's."""

    def __init__(self, app: App, settings: ApiSettings, metrics: Metrics, log: Log) -> None:
        self._app, self._settings, self._metrics, self._log = app, settings, metrics, log
        self._usages: dict[str, Usage] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(scope["method"], scope["path"])
        scope["call"] = call
        headers = dict(scope["headers"])
        answer = _Answer(call, send, self._cors(headers))
        try:
            self._check_host(headers)
            if scope["method"] == "OPTIONS" and answer.cors:
                await answer.whole(204, b"", [*_CORS])
                return
            self._authenticate(call, headers)
            receive = await self._with_body(headers, receive)
            self._limit(call)
            await self._app(scope, receive, answer.send)
        except Disconnected:
            call.disconnected = True
        except Exception as error:
            await self._failed(error, call, answer)
        finally:
            self._finish(call)

    async def _failed(self, error: Exception, call: Call, answer: _Answer) -> None:
        found = from_exception(error)
        if found.status == 500:
            self._log.failure(error, {"id": call.request_id, "path": call.path}, (call.secret,))
        if answer.complete:
            return
        if call.status:  # an answer has begun: all that is left is to cut the connection
            raise ConnectionAbortedError("the answer broke off") from None
        extra = [(name.lower().encode(), value.encode()) for name, value in found.headers().items()]
        if found.status == 401:
            extra.append((b"www-authenticate", b"Bearer"))
        body = error_bytes(found, call.path, call.request_id)
        await answer.whole(found.status, body, [(b"content-type", b"application/json"), *extra])

    def _finish(self, call: Call) -> None:
        now = time.perf_counter()
        if call.usage is not None:
            call.usage.end(now, call.prompt_tokens + call.new_tokens)
        self._metrics.record(call, now - call.started)
        if call.path not in ("/health", "/metrics", "/v1/stats"):
            self._log.event("request", **call.fields())

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        hosts = self._settings.hosts
        if not hosts:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] if ":" in host else host
        if name not in hosts:
            raise ApiError(403, f"this server answers to {', '.join(hosts)} only; the Host header names another")

    def _cors(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        origin = headers.get(b"origin", b"")
        if not origin or not ({origin.decode("latin-1"), "*"} & set(self._settings.origins)):
            return []
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin"),
                (b"access-control-expose-headers", b"x-request-id, retry-after")]

    def _authenticate(self, call: Call, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"").decode("latin-1")
        bearer = given[7:].strip() if given[:7].lower() == "bearer " else ""
        call.secret = bearer or headers.get(b"x-api-key", b"").decode("latin-1").strip()
        if not self._settings.keys or call.path in OPEN_PATHS:
            return
        call.key = self._settings.keys.find(call.secret) if call.secret else None
        if call.key is None:
            said = "the API key is not valid" if call.secret else "this server wants an API key"
            raise ApiError(401, f"{said}: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                           code="invalid_api_key")

    def _limit(self, call: Call) -> None:
        if call.key is None or call.method != "POST":
            return
        usage = self._usages.setdefault(call.key.name, Usage(call.key))
        met = usage.wait_s(time.perf_counter())
        if met is not None:
            raise ApiError(429, f"this key may make {met[1]}: try again later", code="rate_limit_exceeded",
                           retry_after_s=met[0])
        usage.begin(time.perf_counter())
        call.usage = usage

    async def _with_body(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the body, within the limits of size and time, and return a `receive` that has it."""
        most = self._settings.max_body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        try:
            body = await asyncio.wait_for(_whole_body(receive, most), self._settings.body_timeout_s)
        except TimeoutError:
            raise ApiError(408, "the request's body did not arrive within "
                           f"{self._settings.body_timeout_s:g} s") from None
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again


class _Answer:
    """Sends an answer with the headers that all get."""

    def __init__(self, call: Call, send: Send, cors: list[tuple[bytes, bytes]]) -> None:
        self._call, self._send, self.cors, self.complete = call, send, cors, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._call.status = message["status"]
            identity = (b"x-request-id", self._call.request_id.encode())
            message = {**message, "headers": [*message.get("headers", []), identity, *_HEADERS, *self.cors]}
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body")

    async def whole(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Send a short answer."""
        length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await self.send({"type": "http.response.body", "body": body})


async def _whole_body(receive: Receive, most: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request's body is larger than {most} bytes, the most this server takes",
                    code="request_too_large")
