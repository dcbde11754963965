"""When to train: a declared policy over a state, as a pure function that says why or why not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from streams.settings import TriggerSettings

DAY_MS = 86_400_000


@dataclass(frozen=True)
class PolicyState:
    """What the decision looks at."""

    members: int
    answered: int
    admitted_total: int
    admitted_at_last_run: int
    last_run_ms: int | None
    """Epoch milliseconds of the last request; None if there was none."""
    runs_last_day: int
    running: bool
    """A request whose run has not ended."""
    histogram: Sequence[int]
    histogram_at_last_run: Sequence[int] | None
    """Counts of members by difficulty, the same bins."""
    paused: bool = False
    """By an operator, besides the setting."""


@dataclass(frozen=True)
class Condition:
    """One line of the decision."""

    name: str
    value: float
    bound: float | None
    holds: bool
    kind: str
    """`reason`: one of these must hold. `guard`: all of these must hold."""


@dataclass(frozen=True)
class Decision:
    """`train` is true when at least one reason and every guard holds."""

    train: bool
    reasons: list[str]
    blocked_by: list[str]
    conditions: list[Condition]


def decide(policy: TriggerSettings, state: PolicyState, now_ms: int) -> Decision:
    """Whether to train now, with every condition's value and bound."""
    age_s = math.inf if state.last_run_ms is None else (now_ms - state.last_run_ms) / 1000
    paused = policy.paused or state.paused
    first = state.last_run_ms is None
    new = state.admitted_total - state.admitted_at_last_run
    shift = 0.0 if state.histogram_at_last_run is None else psi(state.histogram_at_last_run, state.histogram)
    share = state.answered / state.members if state.members else 0.0
    reasons = [
        Condition("new_members", new, policy.min_new, new >= policy.min_new, "reason"),
        Condition(
            "age_s",
            age_s,
            policy.max_age_s,
            not first and policy.max_age_s is not None and age_s >= policy.max_age_s,
            "reason",
        ),
        Condition(
            "difficulty_shift",
            shift,
            policy.min_shift,
            policy.min_shift is not None and shift >= policy.min_shift,
            "reason",
        ),
    ]
    guards = [
        Condition("members", state.members, policy.min_members, state.members >= policy.min_members, "guard"),
        Condition("answered_share", share, policy.min_answered, share >= policy.min_answered, "guard"),
        Condition("cooldown_s", age_s, policy.cooldown_s, age_s >= policy.cooldown_s, "guard"),
        Condition(
            "runs_last_day",
            state.runs_last_day,
            policy.max_runs_per_day,
            state.runs_last_day < policy.max_runs_per_day,
            "guard",
        ),
        Condition("no_run_in_progress", float(state.running), None, not state.running, "guard"),
        Condition("not_paused", float(paused), None, not paused, "guard"),
    ]
    why = [condition.name for condition in reasons if condition.holds]
    blocked = [condition.name for condition in guards if not condition.holds]
    return Decision(bool(why) and not blocked, why, blocked, reasons + guards)


def psi(before: Sequence[int], after: Sequence[int]) -> float:
    """Population stability index, Σ (q - p)·ln(q / p) over bins of equal edges; 0 is no shift, over 0.2 a large one
    (Siddiqi, Credit Risk Scorecards, 2006). Half a count is added to each bin, so that an empty one stays finite.
    """
    if len(before) != len(after):
        raise ValueError(f"histograms of {len(before)} and {len(after)} bins")
    p_total = sum(before) + 0.5 * len(before)
    q_total = sum(after) + 0.5 * len(after)
    total = 0.0
    for b, a in zip(before, after, strict=True):
        p, q = (b + 0.5) / p_total, (a + 0.5) / q_total
        total += (q - p) * math.log(q / p)
    return total
