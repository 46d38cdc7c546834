"""API keys: read from a file, kept as hashes, each with its own limits.

The file is TOML, one table a key:

    [alice]
    key = "sk-..."              # or sha256 = "hex digest of the key"
    requests_per_minute = 60    # optional, as are the two below
    tokens_per_minute = 100000  # prompt and answer together
    max_in_flight = 8
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError

_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_in_flight")
_SHORTEST = 16  # characters of a key: shorter ones can be guessed
_WINDOW_S = 60.0


@dataclass(frozen=True)
class Key:
    """Whose key it is, and its limits (None: none)."""

    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None


@dataclass(frozen=True)
class Keys:
    """The keys by the SHA-256 of each. No keys: everyone is served."""

    by_digest: dict[str, Key] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.by_digest)

    def find(self, presented: str) -> Key | None:
        """Return whose key was presented. Comparing digests tells nothing of how near a guess was."""
        return self.by_digest.get(hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest())


def read_keys(path: Path) -> Keys:
    """Read a key file. Raises InputError with every reason; messages name keys by their owner, never by value."""
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise InputError(f"cannot read the key file {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the key file {path} is not TOML") from error  # the parser's words may quote a key
    problems: list[str] = []
    found: dict[str, Key] = {}
    for name, table in tables.items():
        digest = _digest(name, table, problems)
        if digest in found:
            problems.append(f"{name} and {found[digest].name} have the same key")
        elif digest:
            found[digest] = Key(name, *(table.get(limit) for limit in _LIMITS))
    if not tables:
        problems.append("it has no keys")
    if problems:
        raise InputError(f"the key file {path} cannot be used: " + "; ".join(problems))
    return Keys(found)


def _digest(name: str, table: Any, problems: list[str]) -> str:
    if not isinstance(table, dict):
        problems.append(f"{name} must be a table: [{name}] with key = \"...\"")
        return ""
    problems += [f"{name}: unknown {entry}" for entry in table if entry not in ("key", "sha256", *_LIMITS)]
    problems += [f"{name}: {limit} must be a whole number above 0" for limit in _LIMITS
                 if limit in table and (type(table[limit]) is not int or table[limit] < 1)]
    key, digest = table.get("key"), table.get("sha256")
    if (key is None) == (digest is None):
        problems.append(f"{name} must have key or sha256, one of them")
    elif key is not None:
        if isinstance(key, str) and len(key) >= _SHORTEST and key.isprintable() and " " not in key:
            return hashlib.sha256(key.encode()).hexdigest()
        problems.append(f"{name}: key must be at least {_SHORTEST} printable characters without spaces")
    elif not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        problems.append(f"{name}: sha256 must be 64 lower-case hex digits")
    return digest if isinstance(digest, str) else ""


class Usage:
    """What one key used in the last minute and has in flight. Used by one event loop only."""

    def __init__(self, key: Key) -> None:
        self.key, self.in_flight = key, 0
        self._requests: deque[float] = deque()
        self._tokens: deque[tuple[float, int]] = deque()
        self._num_tokens = 0

    def wait_s(self, now: float) -> tuple[float, str] | None:
        """Return after how long a request may be tried again and which limit is met; None: it may come now."""
        while self._requests and self._requests[0] <= now - _WINDOW_S:
            self._requests.popleft()
        while self._tokens and self._tokens[0][0] <= now - _WINDOW_S:
            self._num_tokens -= self._tokens.popleft()[1]
        key = self.key
        if key.requests_per_minute is not None and len(self._requests) >= key.requests_per_minute:
            return self._requests[0] + _WINDOW_S - now, f"{key.requests_per_minute} requests a minute"
        if key.tokens_per_minute is not None and self._num_tokens >= key.tokens_per_minute:
            return self._tokens[0][0] + _WINDOW_S - now, f"{key.tokens_per_minute} tokens a minute"
        if key.max_in_flight is not None and self.in_flight >= key.max_in_flight:
            return 1.0, f"{key.max_in_flight} requests at once"
        return None

    def begin(self, now: float) -> None:
        """Count a request."""
        self._requests.append(now)
        self.in_flight += 1

    def end(self, now: float, num_tokens: int) -> None:
        """Count a request's tokens, and that it is over."""
        self._tokens.append((now, num_tokens))
        self._num_tokens += num_tokens
        self.in_flight -= 1
