"""The same front door before another engine: keys, limits, logs, page and metrics here, answers from there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from .app import add_metrics, bare_app, paths_of
from .call import Call
from .errors import ApiError
from .gate import Gate
from .log import Log
from .metrics import Metrics
from .page_files import add_page
from .settings import ApiSettings

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/models")
_RENAMED = {"/v1/tokenize": "/tokenize", "/v1/detokenize": "/detokenize"}  # vLLM's names
_HEADERS = ("content-type", "retry-after", "cache-control")


def make_proxy(url: str, settings: ApiSettings, log: Log | None = None) -> Gate:
    """Return the application that passes requests on to an OpenAI-compatible engine at `url`."""
    import httpx

    api, log = bare_app(), log or Log()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    client = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(settings.timeout_s, connect=10), limits=limits)
    for path in (*PATHS, *_RENAMED):
        _add(api, path, client)

    @api.get("/health", tags=["server"])
    async def health() -> Response:
        """Whether the engine answers."""
        try:
            status = (await client.get("/health")).status_code
        except httpx.HTTPError:
            status = 503
        return JSONResponse({"status": "ok" if status == 200 else "failed"}, 200 if status == 200 else 503)

    @api.get("/v1/stats", tags=["server"])
    async def stats() -> dict[str, Any]:
        """The engine's own counts, by the names that the page reads; None: it does not tell."""
        text = (await client.get("/metrics")).text
        return {"model": settings.model, "chip": settings.chip, "kind": "measured", **_stats(text)}

    @api.get("/metrics/engine", tags=["server"], response_class=Response)
    async def engine_metrics() -> Response:
        """The engine's own Prometheus metrics."""
        return Response((await client.get("/metrics")).content, media_type="text/plain; version=0.0.4; charset=utf-8")

    add_page(api)
    metrics = Metrics(None, paths_of(api) | frozenset(PATHS))
    add_metrics(api, metrics)
    return Gate(api, settings, metrics, log)


def _add(api: FastAPI, path: str, client: Any) -> None:
    @api.api_route(path, methods=["GET"] if path == "/v1/models" else ["POST"])
    async def forward(http: HttpRequest) -> Response:
        return await _forward(http, client, _RENAMED.get(path, path))


async def _forward(http: HttpRequest, client: Any, path: str) -> Response:
    import httpx

    call: Call = http.scope["call"]
    sent = {"content-type": http.headers.get("content-type", "application/json")}
    request = client.build_request(http.method, path, content=await http.body(), headers=sent)
    try:
        answer = await client.send(request, stream=True)
    except httpx.TimeoutException:
        raise ApiError(504, "the engine did not answer in time", code="timeout") from None
    except httpx.HTTPError:
        raise ApiError(503, "the engine does not answer", code="engine_stopped", retry_after_s=5) from None
    headers = {name: answer.headers[name] for name in _HEADERS if name in answer.headers}
    return StreamingResponse(_pieces(answer, call), answer.status_code, headers)


async def _pieces(answer: Any, call: Call) -> AsyncIterator[bytes]:
    """Pass the body on as it comes; the engine sees the client leave when this is closed."""
    try:
        async for piece in answer.aiter_raw():
            if call.first_token is None:
                call.first_token = time.perf_counter()
            yield piece
        call.finish = "passed on"
    finally:
        await answer.aclose()


def _stats(text: str) -> dict[str, Any]:
    """Read vLLM's metrics."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("vllm:"):
            found[name.partition("{")[0]] = found.get(name.partition("{")[0], 0.0) + float(value)
    queries = found.get("vllm:prefix_cache_queries_total")
    drafted = found.get("vllm:spec_decode_num_draft_tokens_total")
    return {"waiting": int(found.get("vllm:num_requests_waiting", 0)),
            "running": int(found.get("vllm:num_requests_running", 0)), "tokens_per_s": None, "ttft_s": None,
            "cache_blocks": None, "cache_used_share": found.get("vllm:kv_cache_usage_perc"),
            "new_tokens": int(found.get("vllm:generation_tokens_total", 0)),
            "cache_hit_rate": found.get("vllm:prefix_cache_hits_total", 0) / queries if queries else None,
            "acceptance": found.get("vllm:spec_decode_num_accepted_tokens_total", 0) / drafted if drafted else None}
