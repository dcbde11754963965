"""Small batches out of single calls: one round trip for many records, in the order in which they came."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Batcher(Generic[A, B]):
    """`await add(item)` gives the item's result of `flush(items)`; that gets up to `most` items at once.

    Calls of `flush` never overlap: while one is under way the next batch gathers, so that batches grow with the load
    and a lone record does not wait. An error of `flush` goes to every item of its batch.
    """

    def __init__(self, flush: Callable[[Sequence[A]], Awaitable[Sequence[B]]], most: int) -> None:
        self._flush = flush
        self._most = most
        self._waiting: list[tuple[A, asyncio.Future[B]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def add(self, item: A) -> B:
        """The result for `item`."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None:
            self._runner = asyncio.ensure_future(self._run())
        return await future

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # the other tasks of this turn of the loop join the batch
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._one(batch)
        finally:
            self._runner = None

    async def _one(self, batch: list[tuple[A, "asyncio.Future[B]"]]) -> None:
        try:
            results = await self._flush([item for item, _ in batch])
        except Exception as error:  # handed to every waiter, not swallowed
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
