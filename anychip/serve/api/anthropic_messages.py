"""/v1/messages and /v1/messages/count_tokens: Anthropic's dialect."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ...chat import Delta
from ..request import Request, Sampling
from . import sse
from .answers import Backend, Running, encoded
from .anthropic_chat import anthropic_chat
from .anthropic_schema import CountRequest, MessagesRequest
from .call import Call
from .chat_choice import ChatChoice
from .chat_prompt import ChatPrompt, chat_prompt
from .errors import ApiError
from .log import Log
from .openai_chat import check_model
from .respond import respond
from .settings import ApiSettings

_STOPS = {"stop": "end_turn", "length": "max_tokens"}


class MessagesEndpoint:
    """Answers messages on an engine."""

    def __init__(self, engine: Backend, settings: ApiSettings, log: Log) -> None:
        self._engine, self._settings, self._log = engine, settings, log

    async def count(self, body: CountRequest, http: HttpRequest) -> Response:
        """Return how many tokens the messages are."""
        check_model(body.model, self._settings)
        return JSONResponse({"input_tokens": len((await self._prompt(body)).ids)})

    async def answer(self, body: MessagesRequest, http: HttpRequest) -> Response:
        """Return the whole message, or the stream of it. Raises ApiError, InputError, Busy or EngineError."""
        check_model(body.model, self._settings)
        call: Call = http.scope["call"]
        call.streamed = bool(body.stream)
        prompt = await self._prompt(body)
        running = Running(self._engine, [self._request(body, prompt)], call, self._settings)
        job = _Job(prompt, call, self._settings.model)
        return await respond(running, http, self._log, whole=lambda: job.whole(running),
                             events=lambda: job.events(running))

    async def _prompt(self, body: CountRequest) -> ChatPrompt:
        return await encoded(lambda: chat_prompt(anthropic_chat(body), self._settings, self._engine.tokenizer),
                             sum(len(str(message.content)) for message in body.messages))

    def _request(self, body: MessagesRequest, prompt: ChatPrompt) -> Request:
        left = self._engine.max_context - len(prompt.ids)
        if left < 1:
            raise ApiError(400, f"prompt is too long: {len(prompt.ids)} tokens, and at most "
                           f"{self._engine.max_context} fit with the answer", param="messages")
        most = min(body.max_tokens, left, self._settings.max_new_tokens or left)
        given = {name: value for name in ("temperature", "top_p", "top_k")
                 if (value := getattr(body, name)) is not None}
        stop = (*(body.stop_sequences or ()), *prompt.stop)
        return Request(prompt.ids, Sampling(seed=None, max_tokens=most, stop=stop, grammar=prompt.grammar, **given))


class _Job:
    """One message, put together or in events."""

    def __init__(self, prompt: ChatPrompt, call: Call, model: str) -> None:
        self._choice, self._call, self._model = ChatChoice(prompt), call, model
        self._id = "msg_" + uuid.uuid4().hex[:24]
        self._num_blocks, self._open = 0, ""

    async def whole(self, running: Running) -> dict[str, Any]:
        """Return the message when it is complete."""
        async for found in running.outputs():
            if found is not None:
                self._choice.add(found[1])
        choice, content = self._choice, list[dict[str, Any]]()
        if choice.reasoning:
            content.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
        if choice.content or not choice.calls:
            content.append({"type": "text", "text": choice.content})
        content += [{"type": "tool_use", "id": call["id"], "name": call["function"]["name"],
                     "input": json.loads(call["function"]["arguments"])} for call in choice.calls]
        return self._message(content) | self._stopped() | {"usage": self._usage()}

    async def events(self, running: Running) -> AsyncIterator[bytes]:
        """Yield Anthropic's events as tokens come."""
        begun = False
        async for found in running.outputs():
            if not begun:
                begun = True
                yield _event("message_start", message=self._message([]) | {
                    "stop_reason": None, "stop_sequence": None, "usage": self._usage() | {"output_tokens": 1}})
            if found is None:
                yield _event("ping")
                continue
            for delta in self._choice.add(found[1]):
                for each in self._delta(delta):
                    yield each
        if self._num_blocks == 0:
            for each in self._piece("text", {"type": "text", "text": ""}, None):
                yield each
        for each in self._close():
            yield each
        yield _event("message_delta", delta=self._stopped(), usage=self._usage())
        yield _event("message_stop")

    def _delta(self, delta: Delta) -> list[bytes]:
        if delta.reasoning:
            return self._piece("thinking", {"type": "thinking", "thinking": "", "signature": ""},
                               {"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.call is None:
            return self._piece("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": delta.content})
        call = self._choice.calls[delta.call.index]
        return self._close() + self._piece(
            "tool_use", {"type": "tool_use", "id": call["id"], "name": delta.call.name, "input": {}},
            {"type": "input_json_delta", "partial_json": delta.call.arguments})

    def _piece(self, kind: str, block: dict[str, Any], delta: dict[str, Any] | None) -> list[bytes]:
        """Events of a piece of a block, the block's beginning and the end of the one before included."""
        found = []
        if self._open != kind:
            found += [*self._close(), _event("content_block_start", index=self._num_blocks, content_block=block)]
            self._num_blocks, self._open = self._num_blocks + 1, kind
        if delta is not None:
            found.append(_event("content_block_delta", index=self._num_blocks - 1, delta=delta))
        return found

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        return [_event("content_block_stop", index=self._num_blocks - 1)]

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}

    def _stopped(self) -> dict[str, Any]:
        choice = self._choice
        reason = _STOPS.get(str(choice.finish), "end_turn")
        if choice.calls and choice.finish == "stop":
            reason = "tool_use"
        sequence = choice.stop if isinstance(choice.stop, str) else None
        if reason != "tool_use" and sequence is not None:
            reason = "stop_sequence"
        self._call.finish, self._call.malformed = reason, choice.malformed
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _usage(self) -> dict[str, Any]:
        call = self._call
        return {"input_tokens": call.prompt_tokens - call.cached_tokens, "output_tokens": call.new_tokens,
                "cache_read_input_tokens": call.cached_tokens, "cache_creation_input_tokens": 0}


def _event(name: str, **fields: Any) -> bytes:
    return sse.event({"type": name, **fields}, name)
