"""A small HTTP client for load: one connection a request, streams read as they come, hundreds at once on one core."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError


@dataclass
class Answer:
    """What came back. Times are seconds since the request was begun; `error` says what was wrong, None: nothing."""

    status: int = 0
    text: str = ""
    finish: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    retry_after_s: float | None = None
    first_s: float | None = None
    total_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)
    error: str | None = None
    left: bool = False  # this side went away on purpose

    @property
    def complete(self) -> bool:
        """Whether a whole answer came."""
        return self.status == 200 and self.finish is not None and self.error is None

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first."""
        if self.first_s is None or self.new_tokens < 2:
            return None
        return (self.total_s - self.first_s) / (self.new_tokens - 1)


@dataclass(frozen=True)
class Target:
    """A server: its root with or without /v1, the model to ask for, and a key, if it wants one."""

    url: str
    model: str
    key: str | None = None

    def parts(self) -> tuple[str, int, str]:
        """Return host, port and the path of /v1. Raises InputError where the address is not http://HOST:PORT."""
        found = urlsplit(self.url if "//" in self.url else "http://" + self.url)
        if found.scheme != "http" or not found.hostname:
            raise InputError(f"{self.url!r} is no address that load can be put on: give http://HOST:PORT")
        return found.hostname, found.port or 80, found.path.rstrip("/").removesuffix("/v1") + "/v1"


async def ask(target: Target, path: str, body: Any, *, timeout_s: float, leave_after: int | None = None) -> Answer:
    """POST a body and read the answer. `leave_after`: go away after so many pieces of a stream."""
    answer, started = Answer(), time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            await _exchange(target, path, body, answer, leave_after)
    except TimeoutError:
        answer.error = f"no end after {timeout_s:g} s"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.total_s = time.perf_counter() - started
    return answer


async def _exchange(target: Target, path: str, body: Any, answer: Answer, leave_after: int | None) -> None:
    host, port, root = target.parts()
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        key = f"Authorization: Bearer {target.key}\r\n" if target.key else ""
        writer.write(f"POST {root}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n{key}"
                     f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        answer.status = int(headers[0].split()[1])
        named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers[1:])}
        if "retry-after" in named:
            answer.retry_after_s = float(named["retry-after"])
        pieces = _body(reader, named)
        if "text/event-stream" in named.get("content-type", ""):
            await _stream(pieces, answer, started, leave_after)
        else:
            _whole(b"".join([piece async for piece in pieces]), answer)
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> Any:
    """Yield the body's pieces. Raises IncompleteReadError where it breaks off."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    yield await reader.readexactly(int(headers.get("content-length", "0")))


async def _stream(pieces: Any, answer: Answer, started: float, leave_after: int | None) -> None:
    held, seen = b"", 0
    async for piece in pieces:
        held += piece
        *events, held = held.split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: "):
                continue
            if event == b"data: [DONE]":
                return
            _take(json.loads(event[6:]), answer, time.perf_counter() - started)
            seen += 1
            if leave_after is not None and seen >= leave_after:
                answer.left = True
                return
    if answer.finish is None and answer.error is None:
        answer.error = "the stream ended before its answer did"


def _take(found: dict[str, Any], answer: Answer, now_s: float) -> None:
    if "error" in found:
        answer.error = f"in the stream: {found['error'].get('message')}"
        return
    for choice in found["choices"]:
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        text += choice.get("delta", {}).get("reasoning_content") or ""
        if text:
            answer.first_s = now_s if answer.first_s is None else answer.first_s
            answer.token_times_s.append(now_s)
            answer.text += text
        answer.finish = choice.get("finish_reason") or answer.finish
    _usage(found, answer)


def _whole(body: bytes, answer: Answer) -> None:
    found = json.loads(body)
    if answer.status != 200:
        answer.error = str((found.get("error") or {}).get("message"))
        return
    for choice in found.get("choices", []):
        answer.text += choice.get("text") or (choice.get("message") or {}).get("content") or ""
        answer.finish = choice.get("finish_reason") or answer.finish
    _usage(found, answer)


def _usage(found: dict[str, Any], answer: Answer) -> None:
    if found.get("usage"):
        answer.prompt_tokens = found["usage"]["prompt_tokens"]
        answer.new_tokens = found["usage"]["completion_tokens"]


def first_model(target: Target) -> str:
    """Return the first model that a server lists. Raises InputError where it does not answer or lists none."""
    host, port, root = target.parts()
    request = urllib.request.Request(f"http://{host}:{port}{root}/models")
    if target.key:
        request.add_header("Authorization", f"Bearer {target.key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(json.loads(answer.read())["data"][0]["id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{target.url} lists no models ({error}): is the server started, and does it want a key? "
                         "--model NAME names one") from error
