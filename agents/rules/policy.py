"""When to train: a declared policy over a state, as a pure function that says why or why not.

Three kinds of condition. A `reason` is one to train; one of them must hold. A `guard` is one not to train now; all of
them must hold, unless somebody asked for a run: that run does not wait for guards. A `must` holds for every run.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agents.rules.shift import ks, psi
from streams.settings import TriggerSettings
from streams.timetable import DAY_MS, moment, next_time, quiet_periods, quiet_until, span, zone_of

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class PolicyState:
    """What the decision looks at. Times are epoch milliseconds."""

    members: int
    answered: int
    admitted_total: int
    admitted_at_last_run: int
    last_run_ms: int | None
    """When the last run was requested; None if there was none."""
    watched_since_ms: int | None
    """When the trigger first decided: before the first run the schedule counts from there."""
    runs_ms: Sequence[int]
    """When runs were requested; those of the last day count."""
    trained_ms: Sequence[tuple[int, int]]
    """From and until of runs, by their events; of one that goes on, until now."""
    running: str | None
    """The run that was requested and has not ended."""
    histogram: Sequence[int]
    histogram_at_last_run: Sequence[int] | None
    """Counts of members by difficulty, the same bins."""
    asked: Sequence[str] = ()
    """Who asked for a run that is not decided yet, and why."""
    paused: str | None = None
    """Why an operator paused training, besides the setting."""
    paused_until_ms: int | None = None
    """None: until it is resumed."""


@dataclass(frozen=True)
class Condition:
    """One line of the decision."""

    name: str
    value: float
    bound: float | None
    """None: it has none, or is not set."""
    holds: bool
    kind: Literal["reason", "guard", "must"]
    unit: str
    """Of value and bound; empty for yes (1) and no (0)."""
    says: str
    """The same for people."""
    until_ms: int | None = None
    """When it changes by time alone; None where that cannot be said."""


@dataclass(frozen=True)
class Decision:
    """`train` is true when at least one reason, every guard that counts and every must hold."""

    train: bool
    reasons: list[str]
    blocked_by: list[str]
    skipped: list[str]
    """Guards that do not hold and do not count, because a run was asked for."""
    not_before_ms: int | None
    """When all that blocks has passed, where there is a reason and time alone is in the way."""
    at_ms: int
    conditions: list[Condition]


def decide(policy: TriggerSettings, state: PolicyState, now_ms: int) -> Decision:
    """Whether to train now, with every condition's value and bound."""
    conditions = [*_reasons(policy, state, now_ms), *_guards(policy, state, now_ms), *_musts(policy, state)]
    why = [c.name for c in conditions if c.kind == "reason" and c.holds]
    failing = [c for c in conditions if c.kind != "reason" and not c.holds]
    blocking = [c for c in failing if c.kind == "must" or not state.asked]
    ends = [c.until_ms for c in blocking if c.until_ms is not None]
    return Decision(
        train=bool(why) and not blocking,
        reasons=why,
        blocked_by=[c.name for c in blocking],
        skipped=[c.name for c in failing if c not in blocking],
        not_before_ms=max(ends) if why and ends and len(ends) == len(blocking) else None,
        at_ms=now_ms,
        conditions=conditions,
    )


def _reasons(policy: TriggerSettings, state: PolicyState, now_ms: int) -> list[Condition]:
    new = state.admitted_total - state.admitted_at_last_run
    share = new / state.members if state.members else 0.0
    return [
        Condition(
            "asked",
            len(state.asked),
            1,
            bool(state.asked),
            "reason",
            "requests",
            "; ".join(dict.fromkeys(state.asked)) or "nobody asked for a run",
        ),
        Condition(
            "new_members",
            new,
            policy.min_new,
            policy.min_new is not None and new >= policy.min_new,
            "reason",
            "members",
            f"{new:,} admitted since the last run{_of(policy.min_new, '{:,}')}",
        ),
        Condition(
            "new_share",
            share,
            policy.min_new_share,
            policy.min_new_share is not None and state.members > 0 and share >= policy.min_new_share,
            "reason",
            "of the members",
            f"{share:.0%} of the members{_of(policy.min_new_share, '{:.0%}')}",
        ),
        _age(policy, state, now_ms),
        _schedule(policy, state, now_ms),
        _shift(policy, state),
    ]


def _age(policy: TriggerSettings, state: PolicyState, now_ms: int) -> Condition:
    age_s, bound = _since_last_run_s(state, now_ms), policy.max_age_s
    first = state.last_run_ms is None
    holds = not first and bound is not None and age_s >= bound
    until = None if first or bound is None or holds else now_ms + math.ceil((bound - age_s) * 1000)
    says = "no run yet" if first else f"{span(age_s)} since the last run"
    if bound is not None:
        says += f" (at most {span(bound)})"
    return Condition("age_s", age_s, bound, holds, "reason", "s", says, until)


def _schedule(policy: TriggerSettings, state: PolicyState, now_ms: int) -> Condition:
    """A scheduled time that has passed since the last run. However many have passed, one run makes up for them."""
    if policy.schedule is None:
        return Condition("schedule", 0, None, False, "reason", "", "no schedule is set")
    zone = zone_of(policy.timezone)
    since = state.watched_since_ms if state.last_run_ms is None else state.last_run_ms
    due = None if since is None else next_time(policy.schedule, zone, since)
    coming = next_time(policy.schedule, zone, now_ms)
    holds = due is not None and due <= now_ms
    says = f"due since {moment(due, zone)}; " if due is not None and holds else ""
    says += "never again" if coming is None else f"next at {moment(coming, zone)}"
    return Condition("schedule", float(holds), 1, holds, "reason", "", f"{policy.schedule}: {says}", coming)


def _shift(policy: TriggerSettings, state: PolicyState) -> Condition:
    before, bound = state.histogram_at_last_run, policy.min_shift
    measure = {"psi": psi, "ks": ks}[policy.shift_measure]
    shift = 0.0 if before is None else measure(before, state.histogram)
    unit = policy.shift_measure.upper()
    says = "nothing to compare with" if before is None else f"{unit} {shift:.3f} since the last run{_of(bound, '{:g}')}"
    return Condition("difficulty_shift", shift, bound, bound is not None and shift >= bound, "reason", unit, says)


def _guards(policy: TriggerSettings, state: PolicyState, now_ms: int) -> list[Condition]:
    return [
        Condition(
            "members",
            state.members,
            policy.min_members,
            state.members >= policy.min_members,
            "guard",
            "members",
            f"{state.members:,} are in the buffer{_of(policy.min_members, '{:,}')}",
        ),
        _cooldown(policy, state, now_ms),
        _runs(policy, state, now_ms),
        _hours(policy, state, now_ms),
        _quiet(policy, now_ms),
    ]


def _cooldown(policy: TriggerSettings, state: PolicyState, now_ms: int) -> Condition:
    age_s, bound = _since_last_run_s(state, now_ms), policy.cooldown_s
    holds = age_s >= bound
    until = None if holds else now_ms + math.ceil((bound - age_s) * 1000)
    says = "no run yet" if state.last_run_ms is None else f"{span(age_s)} since the last run"
    says += f" (at least {span(bound)})"
    return Condition("cooldown_s", age_s, bound, holds, "guard", "s", says, until)


def _runs(policy: TriggerSettings, state: PolicyState, now_ms: int) -> Condition:
    runs, bound = sorted(ms for ms in state.runs_ms if ms > now_ms - DAY_MS), policy.max_runs_per_day
    until = runs[len(runs) - bound] + DAY_MS if len(runs) >= bound else None
    says = f"{len(runs)} in the last 24 hours (fewer than {bound} for another)"
    return Condition("runs_last_day", len(runs), bound, len(runs) < bound, "guard", "runs", says, until)


def _hours(policy: TriggerSettings, state: PolicyState, now_ms: int) -> Condition:
    bound = policy.max_trainer_hours_per_day
    spans = [(start, min(end, now_ms)) for start, end in state.trained_ms]

    def used_h(at_ms: int) -> float:
        return sum(max(0, end - max(start, at_ms - DAY_MS)) for start, end in spans) / HOUR_MS

    used = used_h(now_ms)
    holds = bound is None or used < bound
    until = None
    if bound is not None and not holds and state.running is None:  # the hours of a run in progress are not known yet
        coming = range(now_ms, now_ms + DAY_MS + 1)
        until = coming[bisect_left(coming, True, key=lambda at_ms: used_h(at_ms) < bound)]
    says = f"{used:.2f} h of training in the last 24 hours"
    says += "" if bound is None else f" (less than {bound:g} h for another run)"
    return Condition("trainer_hours_last_day", used, bound, holds, "guard", "h", says, until)


def _quiet(policy: TriggerSettings, now_ms: int) -> Condition:
    zone = zone_of(policy.timezone)
    until = quiet_until(quiet_periods(policy.quiet_hours), zone, now_ms)
    says = "no quiet hours are set" if not policy.quiet_hours else f"it is not one of {', '.join(policy.quiet_hours)}"
    if until is not None:
        says = f"quiet hours until {moment(until, zone)}"
    return Condition("not_quiet_hours", float(until is None), 1, until is None, "guard", "", says, until)


def _musts(policy: TriggerSettings, state: PolicyState) -> list[Condition]:
    share = state.answered / state.members if state.members else 0.0
    paused = policy.paused or state.paused is not None
    says = f"paused: {state.paused}" if state.paused is not None else "not paused"
    if policy.paused:
        says = "paused by the setting trigger.paused"
    elif state.paused_until_ms is not None:
        says += f", until {moment(state.paused_until_ms, zone_of(policy.timezone))}"
    busy = f"{state.running} has not ended" if state.running is not None else "none is in progress"
    empty = "the buffer is empty" if not state.members else "the buffer is not empty"
    return [
        Condition("not_empty", float(state.members > 0), 1, state.members > 0, "must", "", empty),
        Condition(
            "answered_share",
            share,
            policy.min_answered,
            share >= policy.min_answered,
            "must",
            "of the members",
            f"{state.answered:,} of {state.members:,} have answers{_of(policy.min_answered, '{:.0%}')}",
        ),
        Condition("no_run_in_progress", float(state.running is None), 1, state.running is None, "must", "", busy),
        Condition(
            "not_paused",
            float(not paused),
            1,
            not paused,
            "must",
            "",
            says,
            None if policy.paused else state.paused_until_ms,
        ),
    ]


def _since_last_run_s(state: PolicyState, now_ms: int) -> float:
    return math.inf if state.last_run_ms is None else (now_ms - state.last_run_ms) / 1000


def _of(bound: float | None, form: str) -> str:
    return " (not a condition)" if bound is None else f" (at least {form.format(bound)})"
