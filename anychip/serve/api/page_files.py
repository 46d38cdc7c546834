"""The chat page's files, served from the package as they are: no build, nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

FILES = {"/": ("index.html", "text/html; charset=utf-8"), "/chat.css": ("chat.css", "text/css; charset=utf-8"),
         "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
         "/chat-text.js": ("chat-text.js", "text/javascript; charset=utf-8"),
         "/chat-panel.js": ("chat-panel.js", "text/javascript; charset=utf-8")}


def add_page(api: FastAPI) -> None:
    """Add the page's routes."""
    folder = files(__package__ or "") / "page"
    for path, (name, kind) in FILES.items():
        _add(api, path, (folder / name).read_bytes(), kind)


def _add(api: FastAPI, path: str, content: bytes, kind: str) -> None:
    @api.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})
