"""A TCP proxy between two parts that can be cut and slowed while it runs."""

import asyncio
import threading
from contextlib import suppress

CHUNK = 16_384
SLOW_S = 0.15
"""Delay of each chunk while slowed, each way."""


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`, in a thread of its own."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self._cut = False
        self._slow = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError(f"the proxy on port {port} did not start")

    def cut(self) -> None:
        """Resets every connection and refuses new ones until `heal`."""
        self._cut = True
        self._loop.call_soon_threadsafe(self._reset)

    def slow(self) -> None:
        """Delays every chunk until `heal`."""
        self._slow = True

    def heal(self) -> None:
        """As if nothing had been."""
        self._cut = self._slow = False

    def stop(self) -> None:
        """Ends it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._writers -= {writer, back}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(CHUNK):
                if self._slow:
                    await asyncio.sleep(SLOW_S)
                writer.write(data)
                await writer.drain()
        writer.close()
