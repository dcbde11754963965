"""The win rate at equal length: against another implementation of the same regression, and on simulated models."""

import math
import random

import pytest
from sklearn.linear_model import LogisticRegression

from streams.intervals import wilson
from trainers.length_control import PRIOR_DEVIATION, length_controlled, relative_difference


def simulate(
    seed: int, theta: float, phi: float, longer: float, count: int
) -> tuple[list[float], list[tuple[int, int]]]:
    """Outcomes of the model itself; the challenger's answers are e^`longer` times as long, with a spread."""
    draw = random.Random(seed)
    outcomes, lengths = [], []
    for _ in range(count):
        champion = round(400 * draw.lognormvariate(0, 0.4))
        pair = (champion, round(champion * math.exp(draw.gauss(longer, 0.6))))
        p = 1 / (1 + math.exp(-(theta + phi * relative_difference(*pair))))
        outcomes.append(0.5 if draw.random() < 0.1 else float(draw.random() < p))
        lengths.append(pair)
    return outcomes, lengths


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_penalised_logistic_regression(seed: int) -> None:
    outcomes, lengths = simulate(seed, 0.3, 2.0, 0.3, 80)
    found = length_controlled(outcomes, lengths, 0.95)
    x = [[relative_difference(*pair)] for pair in lengths]
    # Soft labels as two weighted rows each; scikit-learn penalises 1/(2C)·φ², never the intercept.
    model = LogisticRegression(C=PRIOR_DEVIATION**2, tol=1e-10, max_iter=1000)
    model.fit(x * 2, [1] * len(x) + [0] * len(x), sample_weight=[*outcomes, *(1 - y for y in outcomes)])
    assert found.effect == pytest.approx(model.coef_[0][0], abs=1e-4)
    assert found.win_rate == pytest.approx(1 / (1 + math.exp(-model.intercept_[0])), abs=1e-5)


def test_equal_lengths_leave_the_plain_rate_and_its_interval() -> None:
    found = length_controlled([1.0] * 30 + [0.5] * 10 + [0.0] * 20, [(100, 100)] * 60, 0.95)
    assert found.win_rate == pytest.approx(35 / 60) and found.effect == 0
    assert (found.lower, found.upper) == pytest.approx(wilson(35, 60, 0.95))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_sweep_is_the_plain_rate(value: float) -> None:
    found = length_controlled([value] * 20, [(100, 300)] * 20, 0.95)
    assert (found.win_rate, found.lower, found.upper) == (value, *wilson(20 * value, 20, 0.95))


def test_nothing_says_nothing() -> None:
    found = length_controlled([], [], 0.95)
    assert (found.win_rate, found.lower, found.upper) == (0.5, 0.0, 1.0)


def test_answers_that_win_by_their_length_alone_are_no_better_at_equal_length() -> None:
    raw = fair = 0
    for seed in range(200):
        outcomes, lengths = simulate(seed, theta=0.0, phi=4.0, longer=0.5, count=300)
        raw += wilson(math.fsum(outcomes), 300, 0.95)[0] > 0.5
        fair += length_controlled(outcomes, lengths, 0.95).lower > 0.5
    assert raw >= 195  # length alone would be promoted
    assert fair <= 15  # 2.5 % is 5, and the prior pulls the effect of length a little towards none


def test_quality_is_still_seen() -> None:
    seen = 0
    for seed in range(100):
        outcomes, lengths = simulate(seed, theta=0.8, phi=4.0, longer=-0.3, count=300)
        seen += length_controlled(outcomes, lengths, 0.95).lower > 0.5
    assert seen >= 95


def test_where_every_answer_is_longer_length_and_quality_cannot_be_told_apart() -> None:
    outcomes = [1.0] * 160 + [0.0] * 40
    found = length_controlled(outcomes, [(100, 300)] * 200, 0.95)
    assert found.lower < 0.5 < found.upper
    assert wilson(160, 200, 0.95)[0] > 0.7


def test_length_that_separates_wins_from_losses_has_a_fit() -> None:
    found = length_controlled([1.0, 0.0] * 20, [(100, 200), (200, 100)] * 20, 0.95)
    assert found.win_rate == pytest.approx(0.5) and 1 < found.effect < 100
    assert 0 < found.lower < 0.5 < found.upper < 1


def test_empty_answers_count_as_the_shortest() -> None:
    assert relative_difference(0, 0) == 0 and relative_difference(0, 5) == 1 and relative_difference(5, 0) == -1
    assert relative_difference(100, 200) == pytest.approx(1 / 3)
