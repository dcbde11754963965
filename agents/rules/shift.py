"""How far a distribution has moved: two measures over histograms with the same bins."""

import math
from collections.abc import Sequence
from itertools import accumulate


def psi(before: Sequence[int], after: Sequence[int]) -> float:
    """Population stability index, Σ (q - p)·ln(q / p) over bins of equal edges; 0 is no shift, over 0.2 a large one
    (Siddiqi, Credit Risk Scorecards, 2006). Half a count is added to each bin, so that an empty one stays finite.
    """
    _same_bins(before, after)
    p_total = sum(before) + 0.5 * len(before)
    q_total = sum(after) + 0.5 * len(after)
    total = 0.0
    for b, a in zip(before, after, strict=True):
        p, q = (b + 0.5) / p_total, (a + 0.5) / q_total
        total += (q - p) * math.log(q / p)
    return total


def ks(before: Sequence[int], after: Sequence[int]) -> float:
    """Two-sample Kolmogorov-Smirnov statistic, the largest distance of the two cumulative shares: 0..1, 0 where one
    side is empty. Taken at the edges of the bins, it is at most what the single values would give.
    """
    _same_bins(before, after)
    if not sum(before) or not sum(after):
        return 0.0
    p = (count / sum(before) for count in accumulate(before))
    q = (count / sum(after) for count in accumulate(after))
    return max(abs(x - y) for x, y in zip(p, q, strict=True))


def _same_bins(before: Sequence[int], after: Sequence[int]) -> None:
    if len(before) != len(after):
        raise ValueError(f"histograms of {len(before)} and {len(after)} bins")
