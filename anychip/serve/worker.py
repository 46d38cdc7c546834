"""The engine's inside, used by its thread alone: requests in, one step at a time, outputs to their streams."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch

from ..chips import Chip
from ..errors import InputError, NotSupported
from ..model import Layout, State, Transformer
from ..text.tokenizer import Tokenizer
from .request import Output, Request
from .sampler import Sampler, log_probabilities
from .settings import EngineSettings, EngineStats
from .stream import Stream
from .text import AnswerText


class Worker:
    """Answers one request after the other."""

    def __init__(self, model: Transformer, chip: Chip, tokenizer: Tokenizer, settings: EngineSettings) -> None:
        self.model, self.chip, self.tokenizer, self.settings = model, chip, tokenizer, settings
        self.max_context = min(model.config.max_position_embeddings, settings.cache_tokens)
        self._queue: deque[tuple[Request, Stream]] = deque()
        self._current: tuple[Request, Stream, Iterator[Output]] | None = None
        self._open: list[int] = []
        self._started, self._finished, self._aborted, self._new_tokens = time.perf_counter(), 0, 0, 0

    def check(self, request: Request) -> None:
        """Raise InputError where the request can never be answered. Called by any thread."""
        config, problems, length = self.model.config, [], len(request.prompt_ids)
        outside = [token for token in request.prompt_ids if not 0 <= token < config.vocab_size]
        if outside:
            problems.append(f"the prompt has token {outside[0]}, the model's ids are 0 to {config.vocab_size - 1}: use "
                            "the tokenizer that belongs to it")
        if length + (request.sampling.max_tokens or 1) > self.max_context:
            problems.append(f"the prompt has {length} tokens and {request.sampling.max_tokens or 1} new ones were asked "
                            f"for; together at most {self.max_context} fit: shorten the prompt or ask for fewer")
        if request.sampling.grammar or request.prompt_logprobs is not None:
            raise NotSupported("grammars and prompt_logprobs are being built")
        if problems:
            raise InputError("cannot generate: " + "; ".join(problems))

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def wait_estimate_s(self) -> float:
        """Seconds after which a refused request should be tried again."""
        return 1.0

    @property
    def has_work(self) -> bool:
        return bool(self._queue) or self._current is not None

    def add(self, request: Request, stream: Stream) -> None:
        self._queue.append((request, stream))

    def abort(self, request_id: str) -> list[str]:
        """End a request; return the ids that are finished by it."""
        for held in list(self._queue):
            if held[0].request_id == request_id:
                self._queue.remove(held)
                held[1].put([Output(i, None, "", finish_reason="abort") for i in range(held[0].sampling.n)])
                self._aborted += 1
                return [request_id]
        if self._current is not None and self._current[0].request_id == request_id:
            self._current[1].put([Output(i, None, "", finish_reason="abort") for i in self._open])
            self._current, self._aborted = None, self._aborted + 1
            return [request_id]
        return []

    def step(self) -> list[str]:
        """Make one token; return the ids of requests that are finished."""
        if self._current is None:
            if not self._queue:
                return []
            request, stream = self._queue.popleft()
            self._current, self._open = (request, stream, self._outputs(request)), list(range(request.sampling.n))
        request, stream, outputs = self._current
        output = next(outputs)
        if output.finish_reason is not None:
            self._open.remove(output.index)
        self._new_tokens += output.token_id is not None
        stream.put([output])
        if self._open:
            return []
        self._current, self._finished = None, self._finished + 1
        return [request.request_id]

    def _outputs(self, request: Request) -> Iterator[Output]:
        for index in range(request.sampling.n):
            yield from self._answer(request, index)

    def _answer(self, request: Request, index: int) -> Iterator[Output]:
        rule, prompt = request.sampling, list(request.prompt_ids)
        sampler, text = Sampler(rule, index, prompt), AnswerText(self.tokenizer, rule.stop)
        most = min(rule.max_tokens or self.max_context, self.max_context - len(prompt))
        state = State(self.model.config, len(prompt) + most, device=self.chip.device)
        ends = set(rule.stop_token_ids) | (set() if rule.ignore_eos else {self.tokenizer.eos_id})
        fresh, position = prompt, len(prompt)
        for count in range(1, most + 1):
            logits = self._pass(fresh, state)
            token = sampler.draw(logits, position, banned=sorted(ends) if count <= rule.min_tokens else ())
            sampler.accept(token)
            shown = None if rule.logprobs is None else log_probabilities(logits, token, rule.logprobs)
            if token in ends:
                stop = None if token == self.tokenizer.eos_id else token
                yield Output(index, token, text.rest(), shown, "stop", stop)
                return
            piece = text.add(token)
            if text.stopped is not None:
                yield Output(index, token, piece, shown, "stop", text.stopped)
                return
            last = count == most
            yield Output(index, token, piece + (text.rest() if last else ""), shown, "length" if last else None)
            fresh, position = [token], position + 1

    @torch.inference_mode()
    def _pass(self, ids: list[int], state: State):  # type: ignore[no-untyped-def]
        for start in range(0, len(ids), state.chunk):
            part = ids[start : start + state.chunk]
            tokens = torch.tensor(part, device=self.model.embed.weight.device)
            hidden = self.model(tokens, Layout((state.num_tokens[0],), (len(part),)), state)
        return self.model.logits(hidden.hidden_Td[-1:])[0].cpu().numpy()

    def stats(self, queued: int, failed: str | None) -> EngineStats:
        uptime = time.perf_counter() - self._started
        return EngineStats(len(self._queue) + queued, int(self._current is not None), self._finished, self._aborted, 0, 0,
                           0, self._new_tokens, 0, 0, 0, 0, 0, self._new_tokens / uptime, None, None, uptime, failed)
