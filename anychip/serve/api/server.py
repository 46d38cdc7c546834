"""Running the application: sockets, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType
from typing import Any

import uvicorn

from ...errors import InputError
from .answers import Backend
from .gate import Gate
from .log import Log
from .settings import ApiSettings

_GRACE_S = 5.0  # after the time to drain: for error events to reach their clients
_BACKLOG = 2048


class Server(uvicorn.Server):
    """On the first SIGTERM or SIGINT: no new connections, answers in flight end, at most `drain_s`; then the rest are
    told so, and the engine stops. On the second: at once."""

    def __init__(self, config: uvicorn.Config, engine: Backend | None, drain_s: float, log: Log) -> None:
        super().__init__(config)
        self._engine, self._drain_s, self._log = engine, drain_s, log

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal."""
        self._log.event("stopping", signal=int(sig), at_once=self.should_exit or None, drain_s=self._drain_s)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections, and the engine after the time to drain."""
        delay_s = 0 if self.force_exit else self._drain_s
        stop = asyncio.get_running_loop().call_later(delay_s, self._stop_soon)
        try:
            await super().shutdown(sockets)
        finally:
            stop.cancel()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop)
        self._captured_signals.clear()  # the end that was asked for is no failure: exit with 0
        self._log.event("stopped")

    def _stop_soon(self) -> None:
        if self._engine is not None:
            asyncio.get_running_loop().run_in_executor(None, self._engine.stop)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InputError where the address is taken or cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise InputError(f"cannot listen on {host} port {port}: {error}; choose others with --host, --port") from error
    found.listen(_BACKLOG)
    return found


def serve(app: Gate, engine: Backend | None, listening: socket.socket, settings: ApiSettings, log: Log) -> None:
    """Serve until a signal ends it."""
    options: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "server_header": False,
                               "backlog": _BACKLOG, "timeout_keep_alive": 30,
                               "timeout_graceful_shutdown": int(settings.drain_s + _GRACE_S)}
    server = Server(uvicorn.Config(app, **options), engine, settings.drain_s, log)
    host, port = listening.getsockname()[:2]
    log.event("serving", url=f"http://{f'[{host}]' if ':' in host else host}:{port}", model=settings.model,
              chip=settings.chip, keys=len(settings.keys.by_digest))
    server.run(sockets=[listening])
