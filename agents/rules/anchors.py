"""Is the judge what it should be? Prompts of known difficulty, and what its ratings of them say. Pure functions."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    """A graded prompt. `id` is its own for ever: earlier ratings are found by it."""

    id: str
    prompt: str
    difficulty: float


@dataclass(frozen=True)
class Measured:
    """What a judge made of the anchors."""

    spearman: float
    """Ratings against labels; NaN when there is nothing to rank."""
    mean: float
    """Of the ratings; NaN without one."""
    drift: float
    """Mean distance to the judge's own first ratings of the same anchors, in points of 1..9; 0 the first time."""
    rated: int
    unreadable: int


def pick(anchors: Iterable[Anchor], count: int) -> list[Anchor]:
    """At most `count` of them, evenly over the levels, always the same ones (by a hash of their ids)."""
    levels: dict[float, list[Anchor]] = defaultdict(list)
    for anchor in sorted(anchors, key=lambda a: hashlib.sha256(a.id.encode()).digest()):
        levels[anchor.difficulty].append(anchor)
    rows = [(place, level, a) for level, own in levels.items() for place, a in enumerate(own)]
    return [anchor for _, _, anchor in sorted(rows, key=lambda row: row[:2])[:count]]


def measured(anchors: Sequence[Anchor], ratings: Mapping[str, float], first: Mapping[str, float]) -> Measured:
    """`ratings` and `first` are by the anchor's id; what is not in `ratings` could not be read."""
    rated = [(ratings[a.id], a.difficulty) for a in anchors if a.id in ratings]
    moved = [abs(rating - first[id]) for id, rating in ratings.items() if id in first]
    values = [rating for rating, _ in rated]
    return Measured(
        spearman=spearman(values, [label for _, label in rated]),
        mean=math.fsum(values) / len(values) if values else math.nan,
        drift=math.fsum(moved) / len(moved) if moved else 0.0,
        rated=len(rated),
        unreadable=len(anchors) - len(rated),
    )


def spearman(values: Sequence[float], labels: Sequence[float]) -> float:
    """Spearman's rho with mid-ranks for ties; NaN if either side is constant or under two long.

    The same as `trainers.judge_check.spearman`, which needs scipy: a worker has none.
    """
    if len(values) < 2:
        return math.nan
    a, b = _ranks(values), _ranks(labels)
    middle = (len(values) + 1) / 2
    shared = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    scale = math.sqrt(math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b))
    return shared / scale if scale > 0 else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
        start = end
    return ranks
