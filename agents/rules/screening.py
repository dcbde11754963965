"""When a prompt need not be judged: a cheap prediction, how far it has been off, and whether it may be trusted."""

from collections import deque

from streams.intervals import wilson

RESIDUALS = 2000
"""Predictions that the margin is taken of."""
POSITIVES = 1000
"""Prompts over the threshold that the recall is taken of."""
CONFIDENCE = 0.9
"""Two-sided: the lower end of the recall holds with 95 %."""


def explored(prompt_id: str, share: float) -> bool:
    """Whether a prompt is judged whatever the prediction says: by hash, so that a redelivery is treated alike. Other
    digits than those that `split` looks at."""
    return int(prompt_id[8:16], 16) < share * 2**32


class Margin:
    """How much harder than predicted prompts turned out to be: the quantile of the last `RESIDUALS` residuals."""

    def __init__(self, quantile: float, least: int) -> None:
        self._quantile = quantile
        self._least = least
        self._last: deque[float] = deque(maxlen=RESIDUALS)
        self._value: float | None = None
        self._stale = 0

    def add(self, predicted: float, difficulty: float) -> None:
        """A prediction that was made before its prompt was learned from, and what the judge said."""
        self._last.append(difficulty - predicted)
        self._stale += 1

    @property
    def value(self) -> float | None:
        """In units of difficulty; None under `least` residuals. Taken anew every 50 of them."""
        if len(self._last) < self._least:
            return None
        if self._value is None or self._stale >= 50:
            ordered = sorted(self._last)
            self._value = ordered[min(len(ordered) - 1, int(self._quantile * len(ordered)))]
            self._stale = 0
        return self._value


class Recall:
    """Of the prompts that the judge put over the threshold, the share that screening lets through.

    To be unbiased it must be fed only with prompts that were judged whatever the prediction said.
    """

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._last: deque[bool] = deque(maxlen=POSITIVES)
        self._let_through = 0

    def add(self, let_through: bool) -> None:
        """A prompt over the threshold."""
        if len(self._last) == POSITIVES:
            self._let_through -= self._last[0]
        self._last.append(let_through)
        self._let_through += let_through

    @property
    def value(self) -> float:
        """0..1; 0 while nothing was measured."""
        return self._let_through / len(self._last) if self._last else 0.0

    @property
    def positives(self) -> int:
        """How many prompts it is taken of."""
        return len(self._last)

    @property
    def proven(self) -> bool:
        """Whether the lower end of its confidence interval is at or over the floor."""
        return wilson(self._let_through, len(self._last), CONFIDENCE)[0] >= self._floor
