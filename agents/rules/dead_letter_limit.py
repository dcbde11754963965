"""When so much is diverted that something else must be wrong (a habit of getsentry/arroyo)."""

from collections import deque

SPAN = 1000
"""Records that the share is taken of."""
LEAST = 200
"""Under so many records a share says little."""


class DeadLetterLimit:
    """Counts the last `SPAN` records; `ratio` is the largest share of them that may be diverted (1: no limit)."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._last: deque[bool] = deque(maxlen=SPAN)
        self._diverted = 0

    def count(self, diverted: bool) -> None:
        """A record is done with."""
        if len(self._last) == SPAN and self._last[0]:
            self._diverted -= 1
        self._last.append(diverted)
        self._diverted += diverted

    @property
    def near(self) -> bool:
        """Whether more than half of what is allowed was diverted: time to look."""
        return len(self._last) >= LEAST and 2 * self._diverted > self._ratio * len(self._last)

    @property
    def exceeded(self) -> bool:
        """Whether too many were diverted."""
        return len(self._last) >= LEAST and self._diverted > self._ratio * len(self._last)

    def __str__(self) -> str:
        return f"{self._diverted} of the last {len(self._last)} records"
