"""The win rate at equal length, so that longer is not simply better. Pure.

A logistic regression explains the outcome of prompt i by the models and by how much longer the challenger's answer is:

    log(p_i / (1 - p_i)) = θ + φ·x_i      x_i = (c_i - b_i) / (c_i + b_i)      win rate at equal length = 1 / (1 + e^-θ)

with c_i and b_i the lengths (characters) of the challenger's and the champion's answer. It is the regression of
AlpacaEval 2 (length-controlled win rate, arXiv 2404.04475: the prediction at a length difference of zero) without its
term for the difficulty of an instruction, which takes many models to fit; the feature is the one of Arena-Hard-Auto's
style control (AlpacaEval 2 divides by the deviation over the prompts, so that answers that are all a tenth longer would
count like answers that are all three times as long). Ties count as half a win, as in AlpacaEval's soft labels.

φ has a normal prior with mean 0 and deviation 4: one deviation lets twice the length (x = 1/3) move the odds by
e^(4/3), about four times. It keeps the fit finite where length separates wins from losses, and it says what is unknown:
where every answer of the challenger is longer, length and quality cannot be told apart, and the interval gets wide.
"""

import math
from collections.abc import Sequence

import msgspec

from streams.intervals import wilson

PRIOR_DEVIATION = 4.0
_MAX_STEPS = 100
_PRECISION = 1e-9


class LengthControlled(msgspec.Struct, kw_only=True):
    """A win rate at equal length, with Wilson's interval over the effective number of prompts."""

    win_rate: float
    lower: float
    upper: float
    effect: float
    """φ: log-odds a unit of relative length difference. Positive: longer answers win."""
    longer: float
    """Mean of x: how much longer the challenger's answers are, -1..1 (1/3 is twice as long)."""


def relative_difference(champion: int, challenger: int) -> float:
    """x: -1 (the challenger says nothing) .. 1; 0 where both say nothing."""
    return (challenger - champion) / (challenger + champion) if challenger + champion else 0.0


def length_controlled(
    outcomes: Sequence[float], lengths: Sequence[tuple[int, int]], confidence: float
) -> LengthControlled:
    """The challenger's win rate at equal length.

    `outcomes`: 1 won, 0 lost, 0.5 tied; `lengths`: of the champion's and of the challenger's answer, in that order. The
    interval is Wilson's with the number of prompts that would give a plain proportion the standard error that the
    regression has, at most the prompts there are; where all lengths are equal, it is the plain one. Where one side won
    every prompt there is nothing to explain, and the result is the plain one too.
    """
    x = [relative_difference(*pair) for pair in lengths]
    count = len(outcomes)
    longer = math.fsum(x) / count if count else 0.0
    total = math.fsum(outcomes)
    if not 0 < total < count:
        rate = total / count if count else 0.5
        lower, upper = wilson(total, count, confidence)
        return LengthControlled(win_rate=rate, lower=lower, upper=upper, effect=0.0, longer=longer)
    theta, phi, variance = _fit(outcomes, x)
    rate = _sigmoid(theta)
    effective = min(count, 1 / (variance * rate * (1 - rate)))
    lower, upper = wilson(rate * effective, effective, confidence)
    return LengthControlled(win_rate=rate, lower=lower, upper=upper, effect=phi, longer=longer)


def _fit(outcomes: Sequence[float], x: Sequence[float]) -> tuple[float, float, float]:
    """θ, φ and the variance of θ: the posterior's mode by Newton's method, and its curvature there."""
    theta = phi = 0.0
    precision = 1 / PRIOR_DEVIATION**2
    for _ in range(_MAX_STEPS):
        p = [_sigmoid(theta + phi * value) for value in x]
        weights = [value * (1 - value) for value in p]
        g0 = math.fsum(y - q for y, q in zip(outcomes, p, strict=True))
        g1 = math.fsum((y - q) * value for y, q, value in zip(outcomes, p, x, strict=True)) - precision * phi
        h00 = math.fsum(weights)
        h01 = math.fsum(w * value for w, value in zip(weights, x, strict=True))
        h11 = math.fsum(w * value * value for w, value in zip(weights, x, strict=True)) + precision
        determinant = h00 * h11 - h01 * h01
        step0 = (h11 * g0 - h01 * g1) / determinant
        step1 = (h00 * g1 - h01 * g0) / determinant
        largest = max(abs(step0), abs(step1))
        damping = min(1.0, 2.0 / largest) if largest else 1.0  # a full step from afar can overshoot
        theta += damping * step0
        phi += damping * step1
        if largest < _PRECISION:
            break
    return theta, phi, h11 / determinant


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
