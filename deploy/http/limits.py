"""A token bucket for each client: `rate` a second in the long run, `burst` at once."""

from dataclasses import dataclass


@dataclass
class _Bucket:
    tokens: float
    at: float


class Limiter:
    """Buckets by name, each full at first. Time is passed in (seconds of a monotonic clock)."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, tokens: float, now: float) -> float:
        """Takes `tokens` and returns 0, or takes none and returns the seconds until there are enough."""
        bucket = self._buckets.setdefault(name, _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.tokens >= tokens:
            bucket.tokens -= tokens
            return 0.0
        return (tokens - bucket.tokens) / self._rate
