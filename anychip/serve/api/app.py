"""The application: every route, its documentation, and the gate before them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ... import __version__
from ...errors import AnychipError
from ..request import EngineError
from . import anthropic_schema, openai_schema
from .answers import Backend
from .anthropic_messages import MessagesEndpoint
from .call import Call, Disconnected
from .document import describe
from .errors import ApiError, error_bytes, from_exception
from .gate import Gate
from .log import Log
from .metrics import Metrics
from .openai_chat import ChatEndpoint
from .openai_models import ModelsEndpoint
from .openai_text import TextEndpoint
from .page_files import add_page
from .settings import ApiSettings
from .tokens import TokenTexts


def make_app(engine: Backend, settings: ApiSettings, log: Log | None = None) -> Gate:
    """Return the ASGI application that serves an engine."""
    log, texts = log or Log(), TokenTexts(engine.tokenizer)
    api = bare_app()
    chat, text = ChatEndpoint(engine, settings, texts, log), TextEndpoint(engine, settings, texts, log)
    messages, models = MessagesEndpoint(engine, settings, log), ModelsEndpoint(engine, settings)

    @api.post("/v1/chat/completions", response_model=openai_schema.ChatAnswer, tags=["OpenAI"])
    async def chat_completions(body: openai_schema.ChatRequest, http: HttpRequest) -> Response:
        """Continue a chat."""
        return await chat.answer(body, http)

    @api.post("/v1/completions", response_model=openai_schema.CompletionAnswer, tags=["OpenAI"])
    async def completions(body: openai_schema.CompletionRequest, http: HttpRequest) -> Response:
        """Continue texts."""
        return await text.answer(body, http)

    @api.post("/v1/messages", response_model=anthropic_schema.MessageAnswer, tags=["Anthropic"])
    async def anthropic(body: anthropic_schema.MessagesRequest, http: HttpRequest) -> Response:
        """Answer messages."""
        return await messages.answer(body, http)

    @api.post("/v1/messages/count_tokens", response_model=anthropic_schema.CountAnswer, tags=["Anthropic"])
    async def count_tokens(body: anthropic_schema.CountRequest, http: HttpRequest) -> Response:
        """Count the tokens of messages."""
        return await messages.count(body, http)

    models.add(api)
    _add_state(api, engine, settings)
    add_page(api)
    metrics = Metrics(engine.stats, paths_of(api))
    add_metrics(api, metrics)
    describe(api)
    return Gate(api, settings, metrics, log)


def bare_app() -> FastAPI:
    """Return an application without routes, whose errors have the dialects' form."""
    api = FastAPI(title="anychip", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
                  redirect_slashes=False)
    for kind in (ApiError, AnychipError, EngineError, HTTPException, RequestValidationError, Disconnected,
                 RecursionError, Exception):
        api.add_exception_handler(kind, _answer_error)
    return api


def paths_of(api: FastAPI) -> frozenset[str]:
    """Return the paths that have a route."""
    return frozenset(str(getattr(route, "path", "")) for route in api.routes)


def add_metrics(api: FastAPI, metrics: Metrics) -> None:
    """Add /metrics."""

    @api.get("/metrics", tags=["server"], response_class=Response)
    async def scrape() -> Response:
        """Prometheus metrics."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_state(api: FastAPI, engine: Backend, settings: ApiSettings) -> None:
    @api.get("/health", tags=["server"])
    async def health() -> Response:
        """Whether the engine runs."""
        failed = engine.stats().failed
        return JSONResponse({"status": "ok" if failed is None else "failed"}, 200 if failed is None else 503)

    @api.get("/v1/stats", tags=["server"])
    async def stats() -> dict[str, Any]:
        """The engine's counts and rates now; all measured."""
        found = engine.stats()
        return {"model": settings.model, "chip": settings.chip, "kind": "measured", **asdict(found),
                "cache_hit_rate": found.cache_hit_rate, "acceptance": found.acceptance}


async def _answer_error(http: HttpRequest, error: Exception) -> Response:
    call: Call = http.scope["call"]
    if isinstance(error, Disconnected):
        call.disconnected = True
        return Response(status_code=499)
    found = _found(error)
    headers = {**found.headers(), **({"Allow": error.headers["Allow"]} if isinstance(error, HTTPException)
                                     and error.headers and "Allow" in error.headers else {})}
    return Response(error_bytes(found, call.path, call.request_id), found.status, headers, "application/json")


def _found(error: Exception) -> ApiError:
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        words = {404: "there is no such path here; /openapi.json lists them", 405: "this path takes another method"}
        return ApiError(error.status_code, words.get(error.status_code, "the request's body cannot be read as JSON"))
    if isinstance(error, RecursionError):
        return ApiError(400, "the request's body is nested too deeply")
    return from_exception(error)


def _invalid(error: RequestValidationError) -> ApiError:
    """Say every reason, each with its place."""
    reasons, params = [], []
    for each in error.errors():
        place = ".".join(str(part) for part in each["loc"] if part != "body")
        reasons.append(f"{place}: {each['msg']}" if place else str(each["msg"]))
        params.append(place)
    shown = reasons[:8] + ([f"and {len(reasons) - 8} more"] if len(reasons) > 8 else [])
    return ApiError(400, "; ".join(shown), param=params[0] or None if params else None)
