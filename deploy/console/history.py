"""What the console remembers of the last hour: pure, fed by the sampler."""

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from agents.rules.rank import ORIGIN_S

KEEP_S = 3_600.0
BUCKET_S = 30
"""Outcomes are counted by the half minute."""


def bar(threshold: float | None, half_life_s: float | None, now_s: float) -> float | None:
    """The difficulty that a prompt of this moment needs to be admitted: the rank key to beat, turned round.

    None while there is room. The inverse of `agents.rules.rank.rank_key`.
    """
    if threshold is None:
        return None
    decay = 0.0 if half_life_s is None else math.log(2) / half_life_s
    return math.exp(threshold - decay * (now_s - ORIGIN_S))


@dataclass(frozen=True)
class Sample:
    """One look at Kafka and Redis; what could not be read is empty or None."""

    at: float
    """Epoch seconds."""
    written: dict[str, int] = field(default_factory=dict)
    """Records ever written, by topic."""
    lags: dict[str, int] = field(default_factory=dict)
    """Records that the workers have not committed, by topic."""
    members: int | None = None
    bar: float | None = None
    """See `bar`."""


class History:
    """Samples of the last hour."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Samples come in the order of time."""
        self.samples.append(sample)
        while self.samples[0].at < sample.at - KEEP_S:
            self.samples.popleft()

    def rates(self, topic: str) -> Iterator[tuple[float, float]]:
        """Time and records a second between each sample and the one before it."""
        known = [(sample.at, sample.written[topic]) for sample in self.samples if topic in sample.written]
        for (before, had), (at, has) in pairwise(known):
            yield at, max(0, has - had) / (at - before)

    def rate(self, topic: str, over_s: float = 30) -> float | None:
        """Records a second, over the last half minute; None without two samples."""
        known = [sample for sample in self.samples if topic in sample.written]
        if len(known) < 2:
            return None
        last = known[-1]
        first = next(sample for sample in known if sample.at >= last.at - over_s or sample is known[-2])
        return max(0, last.written[topic] - first.written[topic]) / (last.at - first.at)


class Outcomes:
    """What became of records, by time."""

    def __init__(self) -> None:
        self.buckets: dict[int, Counter[str]] = {}
        self.passed_over = 0
        """Outcomes that came too fast to be looked at."""

    def count(self, name: str, ts_ms: int) -> None:
        """One more of a name, by its own time."""
        start = ts_ms // 1000 // BUCKET_S * BUCKET_S
        self.buckets.setdefault(start, Counter())[name] += 1

    def forget(self, now_s: float) -> None:
        """Drops what is older than the history."""
        for start in [start for start in self.buckets if start < now_s - KEEP_S]:
            del self.buckets[start]

    def totals(self) -> Counter[str]:
        """Of all that is remembered."""
        return sum(self.buckets.values(), Counter())
