"""Confidence intervals."""

import math
from statistics import NormalDist


def wilson(successes: float, trials: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22; Brown, Cai & DasGupta 2001 for small samples).

    `successes` may hold halves: with ties counted half the variance of a trial is at most that of a win or loss, so the
    interval is conservative. `trials` may be an effective number. (0, 1) without trials.
    """
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
