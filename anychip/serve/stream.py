"""Where one request's outputs arrive: filled by the engine's thread, read by any other thread or event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from .request import Output


class Stream:
    """The outputs of one request, in order; iterate it, or iterate it with `async for`. One reader at a time.

    It ends after the last answer's last output. Raises EngineError at the next item where the engine failed.
    """

    def __init__(self, request_id: str, num_answers: int, abort: Callable[[str], None]) -> None:
        self.request_id, self._open, self._abort = request_id, num_answers, abort
        self._outputs: deque[Output] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, outputs: list[Output]) -> None:
        """Add outputs (the engine's side)."""
        with self._changed:
            self._outputs.extend(outputs)
            self._open -= sum(output.finish_reason is not None for output in outputs)
            self._wake()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, after what has arrived (the engine's side)."""
        with self._changed:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None:
            loop, event = self._waiter
            self._waiter = None
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    @property
    def finished(self) -> bool:
        """Whether every output has been read or an error waits."""
        with self._changed:
            return not self._outputs and (self._open <= 0 or self._error is not None)

    def abort(self) -> None:
        """Stop making tokens. The stream still ends, with finish_reason `abort` on every open answer."""
        self._abort(self.request_id)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Output:
        with self._changed:
            while (found := self._take()) is None:
                self._changed.wait()
            if isinstance(found, Output):
                return found
        raise StopIteration

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Output:
        while True:
            with self._changed:
                found = self._take()
                if found is None:
                    event = asyncio.Event()
                    self._waiter = asyncio.get_running_loop(), event
            if isinstance(found, Output):
                return found
            if found is not None:
                raise StopAsyncIteration
            await event.wait()

    def _take(self) -> Output | bool | None:
        """The next output; True at the end; None: nothing yet. Raises the engine's error."""
        if self._outputs:
            return self._outputs.popleft()
        if self._error is not None:
            raise self._error
        return True if self._open <= 0 else None
