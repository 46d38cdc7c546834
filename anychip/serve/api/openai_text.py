"""/v1/completions: texts or token ids continued, with the prompt's own log-probabilities where asked for."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from ..request import Grammar, Output, Request, TokenLogprobs
from . import sse
from .answers import Backend, Running, encoded
from .call import Call
from .errors import ApiError
from .grammars import answer_grammar
from .log import Log
from .openai_chat import check_model, checked_lengths, schema_of, usage_of
from .openai_schema import CompletionRequest
from .options import check_stream
from .respond import respond
from .settings import ApiSettings
from .tokens import TokenTexts

_DEFAULT_TOKENS = 16  # OpenAI's
_Prompt = tuple[str, tuple[int, ...]]


class TextEndpoint:
    """Continues texts on an engine."""

    def __init__(self, engine: Backend, settings: ApiSettings, texts: TokenTexts, log: Log) -> None:
        self._engine, self._settings, self._texts, self._log = engine, settings, texts, log

    async def answer(self, body: CompletionRequest, http: HttpRequest) -> Response:
        """Return the whole answer, or the stream of it. Raises ApiError, InputError, Busy or EngineError."""
        self._check(body)
        call: Call = http.scope["call"]
        call.streamed = bool(body.stream)
        prompts = await encoded(lambda: self._prompts(body), len(str(body.prompt)))
        running = Running(self._engine, [self._request(body, ids) for _text, ids in prompts], call, self._settings)
        job = _Job(body, prompts, call, self._settings.model, self._texts)
        return await respond(running, http, self._log, whole=lambda: job.whole(running),
                             events=lambda: job.chunks(running))

    def _check(self, body: CompletionRequest) -> None:
        check_stream(body)
        check_model(body.model, self._settings)
        if body.suffix:
            raise ApiError(400, "suffix is not supported: texts are continued only at their end", param="suffix")
        if body.best_of not in (None, body.n or 1):
            raise ApiError(400, f"best_of={body.best_of} must equal n: every answer is returned", param="best_of")
        if body.stream and (body.echo or body.prompt_logprobs is not None):
            raise ApiError(400, "echo and prompt_logprobs need stream=false", param="stream")
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens=0 needs echo=true: there would be nothing to return", param="max_tokens")

    def _prompts(self, body: CompletionRequest) -> list[_Prompt]:
        tokenizer, given = self._engine.tokenizer, body.prompt
        several: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
        num_answers = len(several) * (body.n or 1)
        if num_answers > max(self._settings.max_answers, 128):
            raise ApiError(400, f"{len(several)} prompts with n={body.n or 1} are {num_answers} answers; this server "
                           f"gives at most {max(self._settings.max_answers, 128)}", param="prompt")
        return [(each, tuple(tokenizer.encode(each))) if isinstance(each, str)
                else (tokenizer.decode(each) if body.echo else "", tuple(each)) for each in several]

    def _request(self, body: CompletionRequest, ids: tuple[int, ...]) -> Request:
        most = checked_lengths(_DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens, body.n, self._settings)
        schema = schema_of(body.response_format)
        grammar: Grammar | None = None
        if schema is not None:
            grammar = answer_grammar(schema, self._engine.tokenizer, reasons=False, calls=False)
        of_prompt = body.prompt_logprobs if body.prompt_logprobs is not None else body.logprobs if body.echo else None
        return Request(ids, body.sampling(max_tokens=most or 1, logprobs=body.logprobs, grammar=grammar),
                       prompt_logprobs=of_prompt)


class _Job:
    """One request's continuations, put together or in chunks."""

    def __init__(self, body: CompletionRequest, prompts: list[_Prompt], call: Call, model: str,
                 texts: TokenTexts) -> None:
        self._body, self._prompts, self.call, self._model, self._texts = body, prompts, call, model, texts
        self._n = body.n or 1
        self._outputs: list[list[Output]] = [[] for _ in range(len(prompts) * self._n)]
        self._id, self._created = "cmpl-" + uuid.uuid4().hex, int(time.time())

    async def whole(self, running: Running) -> dict[str, Any]:
        """Return the answer when it is complete."""
        async for found in running.outputs():
            if found is not None:
                self._outputs[found[0] * self._n + found[1].index].append(found[1])
        self._note_finish()
        return self._document([self._choice(i) for i in range(len(self._outputs))]) | {"usage": usage_of(self.call)}

    def _choice(self, i: int) -> dict[str, Any]:
        body, (prompt, ids) = self._body, self._prompts[i // self._n]
        outputs = [] if body.max_tokens == 0 else self._outputs[i]
        text = (prompt if body.echo else "") + "".join(output.text for output in outputs)
        choice = {"index": i, "text": text, "finish_reason": self._outputs[i][-1].finish_reason,
                  "logprobs": self._logprobs(i, ids, outputs)}
        if body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._texts.prompt_rows(self._of_prompt(i))
        return choice

    def _of_prompt(self, i: int) -> tuple[TokenLogprobs, ...]:
        first = self._outputs[i - i % self._n]
        return next((output.prompt_logprobs for output in first if output.prompt_logprobs is not None), ())

    def _logprobs(self, i: int, ids: tuple[int, ...], outputs: list[Output]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        found: list[TokenLogprobs | None] = [output.logprobs for output in outputs if output.logprobs is not None]
        tokens = [each.token_id for each in found if each is not None]
        if self._body.echo:
            found = [None, *self._of_prompt(i), *found]
            tokens = [*ids, *tokens]
        return self._texts.legacy(found, tokens, 0, bool(self._body.return_tokens_as_token_ids))

    async def chunks(self, running: Running) -> AsyncIterator[bytes]:
        """Yield events as tokens come, and pings where a while passes without one."""
        lengths = [0] * len(self._outputs)
        async for found in running.outputs():
            if found is None:
                yield sse.PING
                continue
            output, i = found[1], found[0] * self._n + found[1].index
            self._outputs[i] = [output]
            logprobs = None
            if output.logprobs is not None:
                logprobs = self._texts.legacy([output.logprobs], [output.logprobs.token_id], lengths[i],
                                              bool(self._body.return_tokens_as_token_ids))
            lengths[i] += len(output.text)
            if output.text or logprobs or output.finish_reason:
                choice = {"index": i, "text": output.text, "logprobs": logprobs, "finish_reason": output.finish_reason}
                yield sse.event(self._document([choice]) | ({"usage": None} if self._body.with_usage else {}))
        self._note_finish()
        if self._body.with_usage:
            yield sse.event(self._document([]) | {"usage": usage_of(self.call)})
        yield sse.DONE

    def _document(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model,
                "choices": choices}

    def _note_finish(self) -> None:
        self.call.finish = ",".join(sorted({str(outputs[-1].finish_reason) for outputs in self._outputs if outputs}))
