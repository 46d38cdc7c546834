"""Replies that were paid for, kept in one SQLite file: a run that is cut off asks for nothing twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

_TABLE = "create table if not exists replies (key text primary key, system text, question text, reply text not null)"


@dataclass(frozen=True)
class Reply:
    """A system's words, what it counted (None: it does not say), and how long it took on the wall."""

    text: str
    input_tokens: int | None
    output_tokens: int | None
    time_s: float
    finish: str = "stop"


class Replies:
    """The kept replies of a folder. Any thread may use it; each reply is on the disk before `put` returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("pragma journal_mode=wal")
            self._file.execute("pragma synchronous=full")
            self._file.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{path} cannot keep replies: {error}; choose another folder (--out)") from error

    def get(self, key: str) -> Reply | None:
        """Return the kept reply of that key."""
        with self._lock:
            row = self._file.execute("select reply from replies where key = ?", (key,)).fetchone()
        return None if row is None else Reply(**json.loads(row[0]))

    def put(self, key: str, system: str, question: str, reply: Reply) -> None:
        """Keep a reply."""
        with self._lock:
            self._file.execute("insert or replace into replies values (?, ?, ?, ?)",
                               (key, system, question, json.dumps(asdict(reply))))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def key_of(identity: dict[str, Any], prompt: str) -> str:
    """Return the key of a request: everything that its reply depends on."""
    return hashlib.sha256(json.dumps([identity, prompt], sort_keys=True).encode()).hexdigest()
