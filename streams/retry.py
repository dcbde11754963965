"""Waiting out an outage: `Transient` is retried with capped, jittered backoff for as long as it takes."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streams.errors import Transient
from streams.health import Health

T = TypeVar("T")
log = logging.getLogger(__name__)

FIRST_S = 0.1
CAP_S = 5.0
"""Longest pause: so that work goes on within seconds of a dependency's return."""
QUIET_S = 15.0
"""So long nothing may come from Kafka while there is more to read; then the connection is made anew: aiokafka's
consumer, cut off from the only broker it knows, may wait for ever."""


async def patiently(attempt: Callable[[], Awaitable[T]], on_wait: Callable[[Transient], None] | None = None) -> T:
    """The result of `attempt`, which is called again after each `Transient`. Other errors pass.

    The pause doubles from 0.1 s to 5 s, with jitter (AWS Architecture Blog, "Exponential Backoff and Jitter").
    """
    ceiling = FIRST_S
    while True:
        try:
            return await attempt()
        except Transient as error:
            if on_wait is not None:
                on_wait(error)
        await asyncio.sleep(random.uniform(ceiling / 4, ceiling))
        ceiling = min(ceiling * 2, CAP_S)


class OutageLog:
    """One warning when a dependency fails, one when it works again, and a reminder a minute in between."""

    def __init__(self, what: str, clock: Callable[[], float], health: Health | None = None) -> None:
        self._what = what
        self._clock = clock
        self._health = health
        self._since: float | None = None
        self._said = 0.0

    def failed(self, error: BaseException) -> None:
        """Call at each failure."""
        now = self._clock()
        if self._health is not None:
            self._health.bad(f"{self._what} waits", str(error))
        if self._since is None:
            self._since = self._said = now
            log.warning("%s: waiting: %s", self._what, error, extra={"event": "waiting", "what": self._what})
        elif now - self._said >= 60:
            self._said = now
            waited_s = now - self._since
            log.warning(
                "%s: still waiting after %.0f s: %s",
                self._what,
                waited_s,
                error,
                extra={"event": "still_waiting", "what": self._what, "seconds": round(waited_s, 1)},
            )

    def worked(self) -> None:
        """Call at each success."""
        if self._since is not None:
            if self._health is not None:
                self._health.well(f"{self._what} waits")
            waited_s = self._clock() - self._since
            log.warning(
                "%s: goes on after %.0f s",
                self._what,
                waited_s,
                extra={"event": "goes_on", "what": self._what, "seconds": round(waited_s, 1)},
            )
            self._since = None
