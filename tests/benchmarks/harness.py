"""What all benchmarks share: contestants take turns, the first turns do not count, the median and the spread are told.

Everything here is measured on a machine that other work may share. So contestants never run one after the other: in
each round every one runs once, the next round the other way round, and what is compared is the ratio *within* a
round.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Several runs of one measurement."""

    values: tuple[float, ...]
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if len(self.values) == 1:
            return f"{number(self.median)}{unit}"
        return f"{number(self.median)}{unit} ({number(self.low)}–{number(self.high)})"


@dataclass(frozen=True)
class Goal:
    """A bound of the measured value: exactly one of the two is set."""

    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a goal is either at least or at most something")

    def met(self, value: float) -> bool:
        """Whether the value is at or better than the goal."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def __str__(self) -> str:
        sign, bound = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        return f"{sign} {bound:,g}{' ' + self.unit if self.unit else ''}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    question: str
    haypile: str
    """What of haypile is measured."""
    against: str
    """What it is held against; empty: the goal is a plain number."""
    goal: Goal
    ours: Spread
    theirs: Spread | None = None
    measured: Spread
    """What the goal is about: mostly the ratio of the two, round by round."""
    notes: tuple[str, ...] = ()
    """Figures beside it."""

    @property
    def met(self) -> bool:
        """Whether the median is at or better than the goal."""
        return self.goal.met(self.measured.median)


@dataclass(frozen=True)
class Effort:
    """How much of a measurement is made. `quick` only shows that it runs: its figures mean nothing."""

    quick: bool = False
    events: int = 1_000_000
    """How far `growth` goes."""
    most_rounds: int = 5
    """Of those that count."""
    vllm: Callable[[int], list[str]] = lambda count: []
    """URLs of so many vLLM servers that run: real ones, fake ones when quick. They are shared by all benchmarks."""

    def pick(self, full: int, quick: int) -> int:
        """A size by effort."""
        return quick if self.quick else full

    @property
    def rounds(self) -> int:
        """Counted rounds of what is cheap."""
        return self.pick(self.most_rounds, 1)

    @property
    def few_rounds(self) -> int:
        """Counted rounds of what is dear."""
        return self.pick(min(3, self.most_rounds), 1)


def take_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, tuple[float, ...]]:
    """Values of each contestant, one a round, in the order of the rounds; those of the first `warm_up` are left out.

    Every other round goes the other way round, so that a drift of the machine favours nobody.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        names = list(contestants)
        for name in names if turn % 2 == 0 else reversed(names):
            value = contestants[name]()
            if turn >= warm_up:
                values[name].append(value)
    return {name: tuple(found) for name, found in values.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours to theirs, round by round."""
    return Spread(tuple(a / b for a, b in zip(ours, theirs, strict=True)))


def steady_rate(times: Sequence[float]) -> float:
    """Events/s between the moment when a fifth is done and that when four fifths are: neither start nor tail counts."""
    ordered = sorted(times)
    first, last = len(ordered) // 5, len(ordered) - 1 - len(ordered) // 5
    return (last - first) / (ordered[last] - ordered[first])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def number(value: float) -> str:
    """Three digits that count, thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"
