"""Running requests on the engine for one HTTP request: outputs as they come, with time limits and cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

from ...text.tokenizer import Tokenizer
from ..request import Output, Request
from ..settings import EngineStats
from ..stream import Stream
from .call import Call, Disconnected
from .errors import ApiError
from .settings import ApiSettings

T = TypeVar("T")
_ASYNC_TOKENIZING = 20_000  # characters from which on a prompt is encoded in a thread


class Backend(Protocol):
    """What the API needs of an engine."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    def submit(self, request: Request) -> Stream:
        """Queue a request; raises InputError, Busy or EngineError."""

    def stats(self) -> EngineStats:
        """Return counts and rates now."""

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more, answer what is in flight, stop."""

    def stop(self) -> None:
        """Stop now."""


class Running:
    """Requests on the engine that make up one answer; use as an async context, which ends them with it."""

    def __init__(self, engine: Backend, requests: Sequence[Request], call: Call, settings: ApiSettings) -> None:
        self._engine, self._requests, self._call, self._settings = engine, requests, call, settings
        self._streams: list[Stream] = []
        self._deadline = call.started + settings.timeout_s

    async def start(self) -> Running:
        """Queue the requests: all of them or none. Raises what the engine refuses them with."""
        try:
            for request in self._requests:
                # compiling a grammar takes a while
                grammar = request.sampling.grammar is not None
                submit = self._engine.submit
                self._streams.append(await asyncio.to_thread(submit, request) if grammar else submit(request))
        except BaseException:
            self.abort()
            raise
        self._call.prompt_tokens = sum(len(request.prompt_ids) for request in self._requests)
        return self

    def abort(self) -> None:
        """Have the engine make no more tokens for this."""
        for stream in self._streams:
            if not stream.finished:
                stream.abort()

    async def outputs(self) -> AsyncIterator[tuple[int, Output] | None]:
        """Yield (request's number, output) in each request's order; None where a while passed without one."""
        if len(self._streams) == 1:
            async for output in self._each(0):
                yield None if output is None else (0, output)
            return
        queue: asyncio.Queue[tuple[int, Output] | BaseException | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._forward(i, queue)) for i in range(len(self._streams))]
        try:
            left = len(tasks)
            while left:
                found = await queue.get()
                if isinstance(found, BaseException):
                    if not isinstance(found, _Over):
                        raise found
                    left -= 1
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()

    async def _forward(self, i: int, queue: asyncio.Queue[tuple[int, Output] | BaseException | None]) -> None:
        try:
            async for output in self._each(i):
                queue.put_nowait(None if output is None else (i, output))
        except Exception as error:  # handed to the reader, who raises it
            queue.put_nowait(error)
        else:
            queue.put_nowait(_Over())

    async def _each(self, i: int) -> AsyncIterator[Output | None]:
        stream = self._streams[i]
        while True:
            left = self._deadline - time.perf_counter()
            try:
                async with asyncio.timeout(max(0, min(left, self._settings.ping_s))):
                    output = await anext(stream, None)
            except TimeoutError:
                if time.perf_counter() < self._deadline:
                    yield None
                    continue
                raise ApiError(504, f"the answer was not complete after {self._settings.timeout_s:g} s",
                               code="timeout") from None
            if output is None:
                return
            if output.token_id is not None:
                self._call.token()
            self._call.cached_tokens = max(self._call.cached_tokens, output.cached_tokens)
            if output.finish_reason == "abort":
                raise ApiError(503, "the request was ended by the server", code="aborted", retry_after_s=1)
            yield output


class _Over(Exception):
    """A stream's end, in a queue of several."""


async def unless_gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], work: Awaitable[T]) -> T:
    """Return the work's result; raise Disconnected, the work cancelled, as soon as the client has gone."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def encoded(function: Callable[[], T], num_characters: int) -> T:
    """Return function(), run in a thread where it encodes so much text that other requests would wait."""
    return await asyncio.to_thread(function) if num_characters > _ASYNC_TOKENIZING else function()
