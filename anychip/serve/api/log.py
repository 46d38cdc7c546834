"""Structured logs: one JSON object a line. Never a key, never a prompt, never an answer, never a query string."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO


class Log:
    """Writes events to a text file, standard error by default."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr

    def event(self, name: str, **fields: Any) -> None:
        """Write one event. Fields that are None are left out."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        shown = {key: round(value, 6) if isinstance(value, float) else value for key, value in fields.items()
                 if value is not None}
        self._file.write(json.dumps({"time": stamp, "event": name, **shown}, ensure_ascii=False) + "\n")
        self._file.flush()

    def failure(self, error: BaseException, fields: Mapping[str, Any], secrets: tuple[str, ...]) -> None:
        """Write a bug's traceback, with what must not be seen taken out of it."""
        text = "".join(traceback.format_exception(error))
        for secret in filter(None, secrets):
            text = text.replace(secret, "[key]")
        self.event("failure", error=type(error).__name__, traceback=text, **fields)
