"""Ending tasks for sure.

One `cancel()` is not enough: `asyncio.wait_for` of Python 3.11 returns a result instead of raising when a cancellation
comes in the moment in which its call is done (python/cpython#86296), and redis-py sends every command through it. Seen
under load: a task that renewed a lease was cancelled and went on for ever, and so did the one that waited for its end.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 1.0
"""Pause before a task that still runs is cancelled again."""


async def end(tasks: Iterable["asyncio.Future[Any]"], again_s: float = AGAIN_S) -> None:
    """Cancels the tasks until all have ended; how they ended is not told.

    `again_s` must be longer than a task takes for its own tidying up: a second cancellation cuts that short. Being
    cancelled itself it ends them all the same, and then lets the cancellation go on.
    """
    given = set(tasks)
    cancelled: asyncio.CancelledError | None = None
    while left := {task for task in given if not task.done()}:
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left, timeout=again_s)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in given:
        if not task.cancelled():
            task.exception()  # seen: asyncio complains of an exception that nobody has looked at
    if cancelled is not None:
        raise cancelled
