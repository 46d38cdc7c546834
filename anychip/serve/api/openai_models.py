"""/v1/models, /v1/tokenize and /v1/detokenize."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI

from .answers import Backend, encoded
from .chat_prompt import Chat, chat_prompt
from .errors import ApiError
from .openai_chat import check_model
from .openai_schema import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from .settings import ApiSettings


class ModelsEndpoint:
    """Tells of the one model that is served, and of its tokens."""

    def __init__(self, engine: Backend, settings: ApiSettings) -> None:
        self._engine, self._settings, self._created = engine, settings, int(time.time())

    def add(self, api: FastAPI) -> None:
        """Add the routes."""

        @api.get("/v1/models", tags=["OpenAI"])
        async def models() -> dict[str, Any]:
            """The model that is served."""
            return {"object": "list", "data": [self._model()]}

        @api.get("/v1/models/{name:path}", tags=["OpenAI"])
        async def model(name: str) -> dict[str, Any]:
            """The model of a name."""
            check_model(name, self._settings)
            return self._model()

        @api.post("/v1/tokenize", response_model=TokenizeAnswer, tags=["OpenAI"])
        async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
            """Token ids of a prompt, or of messages as a chat encodes them."""
            return await self._tokenize(body)

        @api.post("/v1/detokenize", response_model=DetokenizeAnswer, tags=["OpenAI"])
        async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
            """The text of token ids."""
            check_model(body.model, self._settings)
            return {"prompt": self._engine.tokenizer.decode(body.tokens)}

    def _model(self) -> dict[str, Any]:
        return {"id": self._settings.model, "object": "model", "created": self._created, "owned_by": "anychip",
                "max_model_len": self._engine.max_context, "display_name": self._settings.model, "type": "model"}

    async def _tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        check_model(body.model, self._settings)
        if (body.prompt is None) == (not body.messages):
            raise ApiError(400, "give prompt or messages, one of them", param="prompt")
        ids = await encoded(lambda: self._ids(body), len(body.prompt or "") or len(str(body.messages)))
        return {"tokens": ids, "count": len(ids), "max_model_len": self._engine.max_context}

    def _ids(self, body: TokenizeRequest) -> list[int]:
        if body.prompt is not None:
            return self._engine.tokenizer.encode(body.prompt)
        chat = Chat([message.model_dump(exclude_none=True) for message in body.messages or ()],
                    [tool.model_dump(exclude_none=True) for tool in body.tools or ()], thinking=body.thinking)
        return list(chat_prompt(chat, self._settings, self._engine.tokenizer).ids)
