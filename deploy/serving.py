"""A web application on a port, until SIGTERM or Ctrl-C: what `haypile http` and `haypile console` have in common."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn

from streams.errors import Fatal


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A socket that listens (0: on a free port). Raises `Fatal` that names the setting when it cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(128)  # who is told the address may connect at once
    except OSError as error:
        bound.close()
        raise Fatal(f"cannot listen on {host} port {port} ({error.strerror}): set {setting} to another one") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where it can be reached from this machine."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # nosec B104
    return f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn ends by the signal that it was sent; here that is a clean end (exit code 0)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.handle_exit(number, frame)


def serve(app: Any, bound: socket.socket, drain_s: int) -> None:
    """Runs an ASGI application until a signal; requests in progress get `drain_s` seconds."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=drain_s
    )
    asyncio.run(_Server(config).serve(sockets=[bound]))
