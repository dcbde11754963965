"""Which two answers of a prompt become a preference pair, and which pairs stay. Pure.

max_min     the best-rewarded answer against the worst (PiKa, Magpie)
max_median  against the median one
margin      against the best of those that are worse by `min_margin`: the closest pair whose order is not noise
rip         as max_min; then only pairs whose rejected answer is good and long enough and whose gap is small enough
            (RIP, arXiv 2501.18578: low-quality prompts show in poor, short rejected answers and in wide gaps)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.recipe import RipRecipe

Answer = Mapping[str, Any]
"""An answer of a snapshot's row: `text`, `reward`, …"""


@dataclass(frozen=True)
class PairFacts:
    """What RIP looks at."""

    rejected_reward: float
    rejected_chars: int
    gap: float
    """Reward of the chosen answer less that of the rejected one; never negative."""


def best_and_other(
    candidates: Iterable[Answer], pairing: str, min_margin: float = 0.0
) -> tuple[Answer, Answer | None] | None:
    """The best-rewarded answer and the one it is paired with; None without an answer that has text.

    Ties keep the order of the candidates. The other is None when there is only one answer, or the two texts are equal;
    it may still be closer than `min_margin`: that is for the caller to refuse (and to count).
    """
    answers = [c for c in candidates if str(c["text"]).strip()]
    if not answers:
        return None
    best, *rest = sorted(answers, key=lambda c: -float(c["reward"]))
    if not rest:
        return best, None
    other = rest[-1]
    if pairing == "max_median":
        other = rest[(len(rest) + 1) // 2 - 1]
    elif pairing == "margin":
        far = (c for c in rest if is_clear(best, c, min_margin) and c["text"] != best["text"])
        other = next(far, other)
    return best, None if other["text"] == best["text"] else other


def is_clear(chosen: Answer, rejected: Answer, min_margin: float) -> bool:
    """Whether the rewards differ, and by `min_margin` at least."""
    gap = float(chosen["reward"]) - float(rejected["reward"])
    return gap > 0 and gap >= min_margin


def rip_refusals(pairs: Sequence[PairFacts], recipe: RipRecipe) -> list[str | None]:
    """For each pair why RIP leaves it out, None where it stays: `rip_rejected`, `rip_short`, `rip_gap` (the first that
    holds). A pair exactly on a bound stays."""
    if not pairs:
        return []
    least_reward = _bound(recipe.min_rejected, [p.rejected_reward for p in pairs], recipe.min_rejected_quantile)
    least_chars = _bound(
        recipe.min_rejected_chars, [p.rejected_chars for p in pairs], recipe.min_rejected_chars_quantile
    )
    widest = _bound(recipe.max_gap, [p.gap for p in pairs], recipe.max_gap_quantile)

    def refusal(pair: PairFacts) -> str | None:
        if pair.rejected_reward < least_reward:
            return "rip_rejected"
        if pair.rejected_chars < least_chars:
            return "rip_short"
        return "rip_gap" if pair.gap > widest else None

    return [refusal(pair) for pair in pairs]


def _bound(value: float | None, values: Sequence[float], share: float) -> float:
    return value if value is not None else quantile(values, share)


def quantile(values: Sequence[float], share: float) -> float:
    """The value at `share` (0..1) of the sorted values, the lower one between two: always one of them, so that the same
    pairs stay whatever the scale of the rewards. Raises `ValueError` for no values."""
    if not values:
        raise ValueError("no values have no quantile")
    return sorted(values)[int(share * (len(values) - 1))]
