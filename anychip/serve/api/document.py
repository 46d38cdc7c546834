"""The OpenAPI document: what every path can answer, and that a key may be wanted."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from . import anthropic_schema, openai_schema
from .errors import is_anthropic

_ERRORS = {"400": "the request cannot be answered as it is", "401": "no valid key", "403": "another host's name",
           "404": "no such model or path", "408": "the body came too slowly", "413": "the body is too large",
           "429": "too many requests: wait for Retry-After seconds", "503": "the engine stopped", "504": "out of time"}
_REFERENCE = "#/components/schemas/{model}"


def describe(api: FastAPI) -> None:
    """Have /openapi.json tell every error, in the form of each dialect."""
    plain = api.openapi

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _with_errors(plain())
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]


def _with_errors(found: dict[str, Any]) -> dict[str, Any]:
    models: dict[str, type[BaseModel]] = {"OpenAIError": openai_schema.ErrorAnswer,
                                          "AnthropicError": anthropic_schema.ErrorAnswer}
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    names = {}
    for name, model in models.items():
        schema = model.model_json_schema(ref_template=_REFERENCE.replace("{model}", name + "{model}"))
        schemas.update({name + inner: each for inner, each in schema.pop("$defs", {}).items()})
        schemas[name] = schema
        names[name] = {"$ref": _REFERENCE.format(model=name)}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operations in found["paths"].items():
        error = names["AnthropicError" if is_anthropic(path) else "OpenAIError"]
        for method, operation in operations.items():
            _document(operation, error, path, method)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"key": []}, {}]
    return found


def _document(operation: dict[str, Any], error: dict[str, Any], path: str, method: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for status, words in _ERRORS.items():
        if method == "get" and status in ("408", "413", "429", "504"):
            continue
        responses.setdefault(status, {"description": words, "content": {"application/json": {"schema": error}}})
    if path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
        responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    if path == "/health":
        responses["503"]["content"]["application/json"] = {"schema": {"type": "object"}}
