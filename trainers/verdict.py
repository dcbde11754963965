"""The gate's figures and its verdict, from comparisons that were made. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from streams.intervals import wilson
from trainers.length_control import LengthControlled, length_controlled
from trainers.recipe import GateRecipe

Outcome = Literal["win", "loss", "tie"]
WORTH: dict[Outcome, float] = {"win": 1.0, "loss": 0.0, "tie": 0.5}


class Comparison(msgspec.Struct, kw_only=True):
    """One prompt: two answers and what was said about them. `outcome` is the challenger's."""

    prompt_id: str
    set: Literal["hard", "everyday"] = "hard"
    category: str = ""
    difficulty: float | None = None
    """The judge's, 1..9; null for everyday prompts."""
    prompt: str = ""
    champion_answer: str = ""
    challenger_answer: str = ""
    champion_reward: float | None = None
    challenger_reward: float | None = None
    """Null where the judge compared pairs."""
    preference: float | None = None
    """Probability, 0..1, that the challenger's answer is the better one; null where answers were rated alone."""
    first: tuple[float, float] | None = None
    """Probability of the answer shown first: the champion's first, the challenger's first."""
    label_mass: float | None = None
    outcome: Outcome = "tie"

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the champion's and of the challenger's answer."""
        return len(self.champion_answer), len(self.challenger_answer)


class Rate(msgspec.Struct, kw_only=True):
    """The challenger's outcomes on some prompts."""

    prompts: int
    wins: int
    losses: int
    ties: int
    win_rate: float
    """Ties count half. 0.5 without prompts."""
    lower: float
    upper: float
    """Wilson's interval."""


class Everyday(Rate, kw_only=True):
    """The regression guard."""

    length_controlled: LengthControlled
    min_lower_bound: float


class Positions(msgspec.Struct, kw_only=True):
    """What the judge of pairs makes of the places."""

    first_share: float
    """Mean probability of the answer shown first, over both orders: 0.5 is no liking for a place."""
    agree: float
    """Share of the prompts on which both orders name the same answer."""
    label_mass: float
    """Mean."""


class GateReport(msgspec.Struct, kw_only=True):
    """The numbers, the verdict and its reason. `champion` is the name of what the challenger was compared with; all
    figures but `everyday` are of the hard prompts."""

    champion: str
    challenger: str
    by: Literal["reward", "judge_pairs"]
    decided_on: Literal["raw", "length_controlled"]
    prompts: int
    skipped: dict[str, int]
    """Prompts that could not be compared, by reason, both sets."""
    wins: int
    losses: int
    ties: int
    win_rate: float
    """Of the challenger; ties count half. 0.5 without prompts."""
    lower: float
    upper: float
    """Ends of the confidence interval of the win rate."""
    confidence: float
    length_controlled: LengthControlled
    champion_reward: float | None
    challenger_reward: float | None
    """Means; null where the judge compared pairs."""
    champion_length: float
    challenger_length: float
    """Mean characters of an answer."""
    positions: Positions | None
    """Null where answers were rated alone."""
    categories: dict[str, Rate]
    everyday: Everyday | None
    """Null where the recipe asks for no everyday prompts."""
    promote: bool
    reason: str
    rows: list[Comparison]


def outcome_of(row: Comparison, recipe: GateRecipe) -> Outcome:
    """Who won: by the preference of a pair, else by the rewards."""
    if row.preference is not None:
        gap, margin = row.preference - 0.5, recipe.tie_preference
    elif row.champion_reward is not None and row.challenger_reward is not None:
        gap, margin = row.challenger_reward - row.champion_reward, recipe.tie_margin
    else:
        raise ValueError(f"prompt {row.prompt_id} has neither a preference nor two rewards")
    return "win" if gap > margin else "loss" if gap < -margin else "tie"


def judge_rows(
    compared: Sequence[Comparison], recipe: GateRecipe, *, champion: str, challenger: str, skipped: Mapping[str, int]
) -> GateReport:
    """The report and verdict of the comparisons; their outcomes are set here."""
    rows = [msgspec.structs.replace(row, outcome=outcome_of(row, recipe)) for row in compared]
    hard = [row for row in rows if row.set == "hard"]
    rate, at_equal_length = _rate(hard, recipe), _length_controlled(hard, recipe)
    everyday = _everyday(rows, recipe) if recipe.everyday.prompts else None
    promote, reason = _verdict(rate, at_equal_length, everyday, recipe)
    return GateReport(
        champion=champion,
        challenger=challenger,
        by=recipe.by,
        decided_on="length_controlled" if recipe.length_control else "raw",
        prompts=len(hard),
        skipped=dict(skipped),
        wins=rate.wins,
        losses=rate.losses,
        ties=rate.ties,
        win_rate=rate.win_rate,
        lower=rate.lower,
        upper=rate.upper,
        confidence=recipe.confidence,
        length_controlled=at_equal_length,
        champion_reward=_mean_reward([row.champion_reward for row in hard]),
        challenger_reward=_mean_reward([row.challenger_reward for row in hard]),
        champion_length=_mean([row.lengths[0] for row in hard]),
        challenger_length=_mean([row.lengths[1] for row in hard]),
        positions=_positions(hard),
        categories={
            name: _rate([row for row in hard if row.category == name], recipe)
            for name in sorted({row.category for row in hard})
        },
        everyday=everyday,
        promote=promote,
        reason=reason,
        rows=rows,
    )


def _verdict(
    rate: Rate, at_equal_length: LengthControlled, everyday: Everyday | None, recipe: GateRecipe
) -> tuple[bool, str]:
    if rate.prompts < recipe.min_prompts:
        promote, reason = (
            recipe.too_few == "promote",
            (
                f"{rate.prompts} held-out prompts could be compared, fewer than gate.min_prompts {recipe.min_prompts}: "
                f"{'promoted unmeasured' if recipe.too_few == 'promote' else 'rejected'}"
            ),
        )
    else:
        promote, reason = _is_better(rate, at_equal_length, recipe)
    if everyday is None or not promote:
        return promote, reason
    lower = everyday.length_controlled.lower if recipe.length_control else everyday.lower
    told = f"on {everyday.prompts} everyday prompts the lower end is {lower:.3f}"
    if lower < everyday.min_lower_bound:
        return False, f"{reason}; but {told}, under gate.everyday.min_lower_bound {everyday.min_lower_bound:g}"
    return True, f"{reason}; {told}"


def _is_better(rate: Rate, at_equal_length: LengthControlled, recipe: GateRecipe) -> tuple[bool, str]:
    decisive: Rate | LengthControlled = at_equal_length if recipe.length_control else rate
    measured = (
        f"win rate {'at equal length ' if recipe.length_control else ''}{decisive.win_rate:.3f}, "
        f"lower end {decisive.lower:.3f} at {recipe.confidence:.0%}, over {rate.prompts} prompts"
    )
    if decisive.win_rate <= recipe.min_win_rate:
        return False, f"{measured}: the win rate is not above gate.min_win_rate {recipe.min_win_rate:g}"
    if decisive.lower < recipe.min_lower_bound:
        return False, f"{measured}: the lower end is under gate.min_lower_bound {recipe.min_lower_bound:g}"
    return True, f"{measured}: better than the champion as the recipe asks"


def _rate(rows: Sequence[Comparison], recipe: GateRecipe) -> Rate:
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in WORTH}
    won = math.fsum(WORTH[row.outcome] for row in rows)
    lower, upper = wilson(won, len(rows), recipe.confidence)
    return Rate(
        prompts=len(rows),
        wins=counts["win"],
        losses=counts["loss"],
        ties=counts["tie"],
        win_rate=won / len(rows) if rows else 0.5,
        lower=lower,
        upper=upper,
    )


def _length_controlled(rows: Sequence[Comparison], recipe: GateRecipe) -> LengthControlled:
    return length_controlled([WORTH[row.outcome] for row in rows], [row.lengths for row in rows], recipe.confidence)


def _everyday(rows: Sequence[Comparison], recipe: GateRecipe) -> Everyday:
    ordinary = [row for row in rows if row.set == "everyday"]
    return Everyday(
        **msgspec.structs.asdict(_rate(ordinary, recipe)),
        length_controlled=_length_controlled(ordinary, recipe),
        min_lower_bound=recipe.everyday.min_lower_bound,
    )


def _positions(rows: Sequence[Comparison]) -> Positions | None:
    pairs = [(row.first, row.label_mass) for row in rows if row.first is not None and row.label_mass is not None]
    if not pairs:
        return None
    # Both orders name the same answer when the answer shown first wins in exactly one of them.
    return Positions(
        first_share=_mean([share for first, _ in pairs for share in first]),
        agree=_mean([(first[0] > 0.5) != (first[1] > 0.5) for first, _ in pairs]),
        label_mass=_mean([mass for _, mass in pairs]),
    )


def _mean_reward(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
