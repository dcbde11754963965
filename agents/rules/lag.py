"""Whether a backlog grows."""

from collections import deque

SPAN_S = 30.0
"""A burst of input and the commits' beat pass within this."""


class LagTrend:
    """Samples of how many records are not taken yet; `growing_for_s` says for how long the number has been growing.

    It grows while it is above `least` and above what it was `SPAN_S` ago. `least` is the window: so much is normal.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._samples: deque[tuple[float, int]] = deque()
        self._since: float | None = None

    def add(self, now: float, lag: int) -> None:
        """A sample at `now` (seconds, monotonic)."""
        self._samples.append((now, lag))
        while len(self._samples) > 1 and self._samples[1][0] <= now - SPAN_S:
            self._samples.popleft()
        then, before = self._samples[0]
        if now - then < SPAN_S:
            return
        if lag <= self._least or lag <= before:
            self._since = None
        elif self._since is None:
            self._since = then

    def growing_for_s(self, now: float) -> float | None:
        """None while it does not grow."""
        return None if self._since is None else now - self._since
