"""The embedded engine: one thread that owns the model and its cache, and streams that any thread may read."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ..chips import Chip
from ..errors import InputError
from ..model import Transformer
from ..text.tokenizer import Tokenizer
from .request import Busy, EngineError, Request
from .settings import EngineSettings, EngineStats
from .stream import Stream
from .structured import Matcher
from .worker import Worker


class Engine:
    """Answers many requests at once on one chip. Make one with `Engine.start`; its methods may be called by any thread.

    A bug in the engine's thread ends every stream in flight with EngineError, and every later call raises it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker, self._changed = worker, threading.Condition()
        self._new: list[tuple[Request, Stream, Matcher | None]] = []
        self._streams: dict[str, Stream] = {}
        self._aborted: set[str] = set()
        self._closing = self._stopping = False
        self._failed: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="anychip-engine", daemon=True)

    @classmethod
    def start(cls, model: Transformer, chip: Chip, tokenizer: Tokenizer,
              settings: EngineSettings | None = None) -> Engine:
        """Return a running engine. The model must not be used elsewhere while it runs.

        Raises ConfigError where the settings do not fit the model.
        """
        engine = cls(Worker(model, chip, tokenizer, settings or EngineSettings()))
        engine._thread.start()
        return engine

    @property
    def settings(self) -> EngineSettings:
        return self._worker.settings

    @property
    def tokenizer(self) -> Tokenizer:
        return self._worker.tokenizer

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and its answer may have together: the model's context, or what the cache holds."""
        return self._worker.max_context

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream at once.

        Raises InputError where it can never be answered (prompt too long, ids outside the vocabulary, a grammar that
        cannot be compiled, an id in flight), Busy where the queue is full or the engine drains, EngineError after a
        failure.
        """
        matcher = self._worker.check(request)
        stream = Stream(request.request_id, request.sampling.n, self.abort)
        with self._changed:
            self._refuse(request)
            self._streams[request.request_id] = stream
            self._new.append((request, stream, matcher))
            self._changed.notify_all()
        return stream

    def _refuse(self, request: Request) -> None:
        if self._failed is not None:
            raise self._failed
        if self._closing or self._stopping:
            raise Busy("the engine is shutting down: send the request to another server", 1.0)
        if request.request_id in self._streams:
            raise InputError(f"request id {request.request_id!r} is in flight: give each request its own")
        waiting = len(self._new) + self._worker.num_waiting
        if waiting >= self.settings.max_queue:
            raise Busy(f"{waiting} requests wait already, max_queue={self.settings.max_queue}: try again later",
                       self._worker.wait_estimate_s())

    def abort(self, request_id: str) -> None:
        """End a request: its stream ends with finish_reason `abort`. Unknown or finished ids are ignored."""
        with self._changed:
            if request_id in self._streams:
                self._aborted.add(request_id)
                self._changed.notify_all()

    def stats(self) -> EngineStats:
        """Return counts, sizes and rates now."""
        with self._changed:
            return self._worker.stats(len(self._new), None if self._failed is None else str(self._failed))

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests, wait until all in flight are answered, and stop; False where time ran out first."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after the pass that runs now; streams in flight raise EngineError."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            while self._next_work():
                self._forget(self._worker.step())
            self._end("the engine was stopped", None)
        except BaseException as error:  # a crash must reach every reader, whatever it was
            self._end(f"the engine failed ({type(error).__name__}: {error}), its requests are lost: start it anew",
                      error)
            raise

    def _next_work(self) -> bool:
        """Wait for something to do and hand it to the worker; False when it is time to end."""
        with self._changed:
            while not (self._new or self._aborted or self._worker.has_work or self._closing or self._stopping):
                self._changed.wait()
            new, aborted = self._new, self._aborted
            self._new, self._aborted = [], set()
            if self._stopping or (self._closing and not (new or self._worker.has_work)):
                return False
        for request, stream, matcher in new:
            self._worker.add(request, stream, matcher)
        for request_id in aborted:
            self._forget(self._worker.abort(request_id))
        return True

    def _forget(self, finished: Sequence[str]) -> None:
        if finished:
            with self._changed:
                for request_id in finished:
                    self._streams.pop(request_id, None)

    def _end(self, message: str, cause: BaseException | None) -> None:
        failed = EngineError(message)
        failed.__cause__ = cause
        with self._changed:
            self._failed = failed
            for stream in self._streams.values():
                stream.fail(failed)
            self._streams.clear()
