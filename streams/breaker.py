"""A circuit breaker for one server: closed, open after failures in a row, then half-open for one probe at a time.

Pure: time is an argument. (The pattern: M. Nygard, Release It!, 2007.)
"""

FAILURES = 3
"""In a row before it opens: one reset connection is no outage."""
FIRST_REST_S = 0.5
CAP_S = 3.0
"""Longest rest before a probe: so that work goes on within seconds of a server's return."""


class Breaker:
    """Ask `allows` before a request, and tell what became of it with `worked`, `failed` or `gave_up`."""

    def __init__(self) -> None:
        self._failures = 0
        self._rest_s = FIRST_REST_S
        self._until: float | None = None
        self._probing = False
        self.open_since: float | None = None
        """When it opened (seconds, as `now`); None while it is closed."""

    @property
    def closed(self) -> bool:
        """Requests go through as usual."""
        return self._until is None

    def allows(self, now: float) -> bool:
        """Whether to send a request at `now` (seconds, monotonic). An open breaker allows one probe after its rest."""
        return self._until is None or (now >= self._until and not self._probing)

    def began(self) -> bool:
        """A request that was allowed is sent. Returns whether it is a probe: say so when it fails or is given up."""
        if self._until is None:
            return False
        self._probing = True
        return True

    def worked(self) -> None:
        """The server answered (also with a refusal of the request: it lives)."""
        self._failures = 0
        self._rest_s = FIRST_REST_S
        self._until = None
        self._probing = False
        self.open_since = None

    def failed(self, now: float, probe: bool) -> None:
        """The server did not answer, or with an error of its own."""
        if probe:
            self._rest_s = min(2 * self._rest_s, CAP_S)
            self._until = now + self._rest_s
            self._probing = False
        elif self._until is None:
            self._failures += 1
            if self._failures >= FAILURES:
                self._until = now + self._rest_s
                self.open_since = now
        # Else it was sent before the breaker opened: dozens fail together, which is one failure, not dozens of probes.

    def gave_up(self, probe: bool) -> None:
        """The request was cancelled: nothing is known."""
        if probe:
            self._probing = False
