"""How the API is set up: names, limits, keys, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...chat import ChatFormat, chat_format
from ...errors import ConfigError
from .keys import Keys

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ApiSettings:
    """Everything but the engine. Raises ConfigError with every reason why it cannot be used.

    model: the name that requests must ask for. chat: the model's chat format. thinking: whether
    the assistant reasons where a request does not say. hosts: the Host headers that are answered, empty: all; naming
    them keeps a foreign page in the user's browser from reaching a loopback server under another name. origins: pages
    of other origins that may read answers (CORS). A request ends after `timeout_s`, its body must arrive within
    `body_timeout_s`; on SIGTERM, requests in flight have `drain_s` to end.
    """

    model: str
    chip: str = "cpu"
    chat: ChatFormat = field(default_factory=lambda: chat_format("v4"))
    thinking: bool = False
    keys: Keys = field(default_factory=Keys)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    max_new_tokens: int | None = None
    max_answers: int = 16
    timeout_s: float = 600
    body_timeout_s: float = 30
    ping_s: float = 15
    drain_s: float = 30

    def __post_init__(self) -> None:
        problems = [f"{name}={getattr(self, name)} must be above 0" for name in
                    ("max_body_bytes", "max_answers", "timeout_s", "body_timeout_s", "ping_s", "drain_s")
                    if not getattr(self, name) > 0]
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            problems.append(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.model:
            problems.append("model must be a name")
        problems += [f"origin {origin!r} must be like https://example.com, or *" for origin in self.origins
                     if origin != "*" and not origin.startswith(("http://", "https://"))]
        if problems:
            raise ConfigError("the API cannot be set up: " + "; ".join(problems))


def served_hosts(host: str) -> tuple[str, ...]:
    """Return the Host headers to answer for a bind address: only its own names on loopback, else all."""
    return (*LOOPBACK, "[::1]") if host in LOOPBACK else ()


def check_exposure(host: str, keys: Keys, without_keys: bool) -> None:
    """Raise ConfigError where anyone on the network could use the server without that having been asked for."""
    if host not in LOOPBACK and not keys and not without_keys:
        raise ConfigError(f"--host {host} can be reached by others, and there are no keys: give --api-key-file FILE, "
                          "or --without-keys to serve anyone who can connect")
