"""/v1/chat/completions: OpenAI's chat, with DeepSeek's reasoning_content."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from ...chat import Delta
from ..request import Output, Request
from . import sse
from .answers import Backend, Running, encoded
from .call import Call
from .chat_choice import ChatChoice
from .chat_prompt import Chat, ChatPrompt, chat_prompt
from .errors import ApiError
from .log import Log
from .openai_schema import ChatRequest, ResponseFormat, ToolChoice
from .options import check_stream
from .respond import respond
from .settings import ApiSettings
from .tokens import TokenTexts


class ChatEndpoint:
    """Answers chats on an engine."""

    def __init__(self, engine: Backend, settings: ApiSettings, texts: TokenTexts, log: Log) -> None:
        self._engine, self._settings, self._texts, self._log = engine, settings, texts, log

    async def answer(self, body: ChatRequest, http: HttpRequest) -> Response:
        """Return the whole answer, or the stream of it. Raises ApiError, InputError, Busy or EngineError."""
        check_stream(body)
        check_model(body.model, self._settings)
        call: Call = http.scope["call"]
        call.streamed = bool(body.stream)
        prompt = await encoded(lambda: chat_prompt(openai_chat(body), self._settings, self._engine.tokenizer),
                               sum(len(str(message.content)) for message in body.messages))
        running = Running(self._engine, [self._request(body, prompt)], call, self._settings)
        job = _Job(body, prompt, call, self._settings.model, self._texts)
        return await respond(running, http, self._log, whole=lambda: job.whole(running),
                             events=lambda: job.chunks(running))

    def _request(self, body: ChatRequest, prompt: ChatPrompt) -> Request:
        top = (body.top_logprobs or 0) if body.logprobs else None
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
        most = checked_lengths(body.max_completion_tokens or body.max_tokens, body.n, self._settings)
        return Request(prompt.ids, body.sampling(
            max_tokens=most, logprobs=top, grammar=prompt.grammar, ends=prompt.stop))


class _Job:
    """One chat request's answers, put together or in chunks."""

    def __init__(self, body: ChatRequest, prompt: ChatPrompt, call: Call, model: str, texts: TokenTexts) -> None:
        self.body, self.call, self._model, self._texts = body, call, model, texts
        self._choices = [ChatChoice(prompt) for _ in range(body.n or 1)]
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in self._choices]
        self._id, self._created = "chatcmpl-" + uuid.uuid4().hex, int(time.time())

    async def whole(self, running: Running) -> dict[str, Any]:
        """Return the answer when it is complete."""
        async for found in running.outputs():
            if found is not None:
                output = found[1]
                self._choices[output.index].add(output)
                self._logprobs[output.index] += self._entries(output)
        self._note_finish()
        return self._document("chat.completion", [self._choice(i) for i in range(len(self._choices))]) | {
            "usage": self._usage()}

    def _choice(self, i: int) -> dict[str, Any]:
        choice = self._choices[i]
        message: dict[str, Any] = {"role": "assistant", "content": choice.content or (None if choice.calls else ""),
                                   "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = choice.calls
        logprobs = {"content": self._logprobs[i], "refusal": None} if self.body.logprobs else None
        return {"index": i, "message": message, "logprobs": logprobs, "finish_reason": _finish(choice)}

    async def chunks(self, running: Running) -> AsyncIterator[bytes]:
        """Yield events as tokens come, and pings where a while passes without one."""
        begun: set[int] = set()
        async for found in running.outputs():
            if found is None:
                yield sse.PING
                continue
            output = found[1]
            choice = self._choices[output.index]
            deltas = [_delta(delta, choice) for delta in choice.add(output)]
            if output.index not in begun:
                begun.add(output.index)
                first: dict[str, Any] = {"role": "assistant", "content": ""}
                yield sse.event(self._chunk(output.index, first))
            for delta in deltas[:-1]:
                yield sse.event(self._chunk(output.index, delta))
            if deltas or output.finish_reason is not None or self.body.logprobs:
                yield sse.event(self._chunk(output.index, deltas[-1] if deltas else {}, output))
        self._note_finish()
        if self.body.with_usage:
            yield sse.event(self._document("chat.completion.chunk", []) | {"usage": self._usage()})
        yield sse.DONE

    def _chunk(self, index: int, delta: dict[str, Any], output: Output | None = None) -> dict[str, Any]:
        entries = self._entries(output) if output is not None else []
        ended = output is not None and output.finish_reason is not None
        logprobs = {"content": entries, "refusal": None} if entries else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs,
                  "finish_reason": _finish(self._choices[index]) if ended else None}
        usage = {"usage": None} if self.body.with_usage else {}
        return self._document("chat.completion.chunk", [choice]) | usage

    def _entries(self, output: Output) -> list[dict[str, Any]]:
        if output.logprobs is None:
            return []
        return [self._texts.chat_entry(output.logprobs, bool(self.body.return_tokens_as_token_ids))]

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    def _usage(self) -> dict[str, Any]:
        return usage_of(self.call, sum(choice.reasoning_tokens for choice in self._choices))

    def _note_finish(self) -> None:
        self.call.finish = ",".join(sorted({_finish(choice) for choice in self._choices}))
        self.call.malformed = next((choice.malformed for choice in self._choices if choice.malformed), None)


def openai_chat(body: ChatRequest) -> Chat:
    """Return the chat that a request describes."""
    template = body.chat_template_kwargs
    switch = None if body.thinking is None else body.thinking.type == "enabled"
    if switch is None and template is not None:
        switch = template.thinking if template.thinking is not None else template.enable_thinking
    choice = body.tool_choice or "auto"
    return Chat([message.model_dump(exclude_none=True) for message in body.messages],
                [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
                ("name", choice.function.name) if isinstance(choice, ToolChoice) else choice, switch,
                body.reasoning_effort or (template.reasoning_effort if template else None),
                schema_of(body.response_format))


def schema_of(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """Return the schema of an answer's format: {} any object, None free text."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {}
    if wanted.json_schema is None or not wanted.json_schema.schema_:
        raise ApiError(400, "response_format of type json_schema must have json_schema.schema, which is not empty",
                       param="response_format")
    return wanted.json_schema.schema_


def check_model(name: str | None, settings: ApiSettings) -> None:
    """Raise ApiError where a model is asked for that is not served."""
    if name is not None and name != settings.model:
        raise ApiError(404, f"the model {name!r} does not exist here; this server has {settings.model!r}",
                       param="model", code="model_not_found")


def checked_lengths(max_tokens: int | None, num_answers: int | None, settings: ApiSettings) -> int | None:
    """Return the most tokens to make. Raises ApiError where more is asked for than the server gives."""
    if (num_answers or 1) > settings.max_answers:
        raise ApiError(400, f"n={num_answers}: this server gives at most {settings.max_answers} answers", param="n")
    most = settings.max_new_tokens
    if most is not None and max_tokens is not None and max_tokens > most:
        raise ApiError(400, f"max_tokens={max_tokens}: this server makes at most {most} tokens", param="max_tokens")
    return max_tokens if max_tokens is not None else most


def usage_of(call: Call, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Return the usage of a request."""
    return {"prompt_tokens": call.prompt_tokens, "completion_tokens": call.new_tokens,
            "total_tokens": call.prompt_tokens + call.new_tokens,
            "prompt_tokens_details": {"cached_tokens": call.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": reasoning_tokens}}


def _delta(delta: Delta, choice: ChatChoice) -> dict[str, Any]:
    if delta.call is not None:
        return {"tool_calls": [{"index": delta.call.index, **choice.calls[delta.call.index]}]}
    return {"reasoning_content": delta.reasoning} if delta.reasoning else {"content": delta.content}


def _finish(choice: ChatChoice) -> str:
    return "tool_calls" if choice.calls and choice.finish == "stop" else str(choice.finish)
