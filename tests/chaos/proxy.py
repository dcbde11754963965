"""A TCP proxy between two parts that can be cut and slowed while it runs, for all its clients or for some processes."""

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CHUNK = 16_384
SLOW_S = 0.15
"""Delay of each chunk while slowed, each way."""

Clients = Callable[[], Collection[int]]
"""Process ids of the clients that are meant, as they are now (a process that is started again has a new one)."""


@dataclass(eq=False)
class _Link:
    """One connection: the client's end, the server's end."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    slow: bool = False


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`, in a thread of its own."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self._cut: list[Clients | None] = []
        self._slow: list[Clients | None] = []
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError(f"the proxy on port {port} did not start")

    def cut(self, clients: Clients | None = None) -> Callable[[], None]:
        """Resets connections (of `clients`, or all) and refuses new ones until the function it returns is called."""
        self._cut.append(clients)
        self._loop.call_soon_threadsafe(self._reset, clients)
        return lambda: self._cut.remove(clients)

    def slow(self, clients: Clients | None = None) -> Callable[[], None]:
        """Delays every chunk (of `clients`, or all) until the function it returns is called."""
        self._slow.append(clients)
        self._loop.call_soon_threadsafe(self._mark)

        def heal() -> None:
            self._slow.remove(clients)
            self._loop.call_soon_threadsafe(self._mark)

        return heal

    def stop(self) -> None:
        """Ends it, with its connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()

    def _reset(self, clients: Clients | None) -> None:
        for link in list(self._links):
            if self._meant(link, [clients]):
                for end in (link.client, link.server):
                    if end is not None:
                        _reset(end)

    def _mark(self) -> None:
        for link in self._links:
            link.slow = self._meant(link, self._slow)

    def _meant(self, link: _Link, groups: Collection[Clients | None]) -> bool:
        if not groups:
            return False
        if None in groups:
            return True
        peer = link.client.get_extra_info("peername")
        pids = {pid for group in groups if group is not None for pid in group()}
        return peer is not None and _holds(pids, peer[1], self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        if self._meant(link, list(self._cut)):
            _reset(writer)
            return
        link.slow = self._meant(link, list(self._slow))
        self._links.add(link)
        try:
            there, link.server = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(self._pump(reader, link.server, link), self._pump(there, writer, link))
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._links.discard(link)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(CHUNK):
                if link.slow:
                    await asyncio.sleep(SLOW_S)
                writer.write(data)
                await writer.drain()
        writer.close()


def _reset(end: asyncio.StreamWriter) -> None:
    """RST, not an orderly end."""
    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()


def _holds(pids: Collection[int], local: int, remote: int) -> bool:
    """Whether one of the processes has the connection from port `local` to port `remote` of 127.0.0.1."""
    ends = (f":{local:04X}", f":{remote:04X}")
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1])}
    for pid in pids:
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if os.readlink(descriptor) in inodes:
                        return True
    return False
