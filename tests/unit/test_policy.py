"""The decision to train: each condition, what a run that was asked for waits for, and when time alone changes it."""

import math
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from agents.rules.policy import Condition, Decision, PolicyState, decide
from agents.rules.shift import ks, psi
from streams.settings import TriggerSettings
from streams.timetable import DAY_MS

NOW = 1_790_000_000_000
"""2026-09-21, a Monday, 16:13:20 in Berlin."""
HOUR = 3_600_000
POLICY = TriggerSettings(min_members=100, min_new=50, max_age_s=3600, cooldown_s=600, max_runs_per_day=2)
STATE = PolicyState(
    members=200,
    answered=200,
    admitted_total=300,
    admitted_at_last_run=200,
    last_run_ms=NOW - 1_000_000,
    watched_since_ms=NOW - 10 * DAY_MS,
    runs_ms=[NOW - 1_000_000],
    trained_ms=[(NOW - 900_000, NOW - 600_000)],
    running=None,
    histogram=[0, 10, 20],
    histogram_at_last_run=[0, 10, 20],
)


def policy(**changes: object) -> TriggerSettings:
    return TriggerSettings.model_validate({**POLICY.model_dump(), **changes})


def state(**changes: object) -> PolicyState:
    return replace(STATE, **changes)  # type: ignore[arg-type]


def of(decision: Decision, name: str) -> Condition:
    return next(condition for condition in decision.conditions if condition.name == name)


def test_it_trains_with_a_reason_and_no_guard_against_it() -> None:
    decision = decide(POLICY, STATE, NOW)
    assert (decision.train, decision.reasons, decision.blocked_by) == (True, ["new_members"], [])
    assert (decision.skipped, decision.not_before_ms, decision.at_ms) == ([], None, NOW)


AGAINST = {
    "members": {"members": 99, "answered": 99},
    "cooldown_s": {"last_run_ms": NOW - 599_000},
    "runs_last_day": {"runs_ms": [NOW - 2, NOW - 1]},
    "trainer_hours_last_day": {"trained_ms": [(NOW - 5 * HOUR, NOW - HOUR)]},
    "not_quiet_hours": {},
    "not_empty": {"members": 0, "answered": 0},
    "answered_share": {"answered": 150},
    "no_run_in_progress": {"running": "r1"},
    "not_paused": {"paused": "by me"},
}
GUARDS = ("members", "cooldown_s", "runs_last_day", "trainer_hours_last_day", "not_quiet_hours")


def against(name: str) -> tuple[TriggerSettings, PolicyState]:
    quiet = ["16:00-17:00"] if name == "not_quiet_hours" else []
    made = policy(max_trainer_hours_per_day=4, quiet_hours=quiet, timezone="Europe/Berlin")
    return made, state(**AGAINST[name])


@pytest.mark.parametrize("name", [name for name in AGAINST if name != "not_empty"])
def test_each_guard_and_each_must_blocks_alone_and_is_named(name: str) -> None:
    decision = decide(*against(name), NOW)
    assert (decision.train, decision.blocked_by) == (False, [name])


@pytest.mark.parametrize("name", AGAINST)
def test_a_run_that_was_asked_for_waits_for_musts_and_for_no_guard(name: str) -> None:
    made, found = against(name)
    decision = decide(made, replace(found, asked=["me: now"]), NOW)
    assert decision.reasons[0] == "asked"
    if name in GUARDS:
        assert (decision.train, decision.blocked_by, decision.skipped) == (True, [], [name])
    else:
        assert not decision.train
        assert name in decision.blocked_by
        assert set(decision.blocked_by).isdisjoint(GUARDS)


def test_a_run_that_was_asked_for_needs_no_other_reason() -> None:
    nothing_new = state(admitted_total=200)
    assert decide(POLICY, nothing_new, NOW).reasons == []
    decision = decide(POLICY, replace(nothing_new, asked=["asked: a (x)", "asked: b (y)", "asked: a (x)"]), NOW)
    assert (decision.train, decision.reasons) == (True, ["asked"])
    assert of(decision, "asked").says == "asked: a (x); asked: b (y)"


def test_paused_by_the_setting_or_by_an_operator() -> None:
    by_setting = decide(policy(paused=True), state(asked=["x"]), NOW)
    assert by_setting.blocked_by == ["not_paused"]
    assert "trigger.paused" in of(by_setting, "not_paused").says
    until = NOW + HOUR
    paused = decide(POLICY, state(paused="new data (joe)", paused_until_ms=until), NOW)
    assert paused.not_before_ms == of(paused, "not_paused").until_ms == until
    assert "new data (joe)" in of(paused, "not_paused").says
    both = decide(policy(paused=True), state(paused="x", paused_until_ms=until), NOW)
    assert both.not_before_ms is None, "the setting has no end"


def test_when_it_may_train_is_only_said_when_time_alone_is_in_the_way() -> None:
    soon = state(last_run_ms=NOW - 599_000)
    assert decide(POLICY, soon, NOW).not_before_ms == NOW + 1000
    assert decide(POLICY, replace(soon, members=99, answered=99), NOW).not_before_ms is None, "members, too"
    assert decide(POLICY, replace(soon, admitted_total=200), NOW).not_before_ms is None, "there is no reason"


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"admitted_total": 249}, []),
        ({"admitted_total": 200, "last_run_ms": NOW - 3_600_000}, ["age_s"]),
        ({"admitted_total": 200, "histogram": [30, 0, 0]}, ["difficulty_shift"]),
        ({"last_run_ms": None, "admitted_at_last_run": 0, "histogram_at_last_run": None}, ["new_members"]),
    ],
)
def test_reasons(change: dict[str, object], reasons: list[str]) -> None:
    decision = decide(POLICY, state(**change), NOW)
    assert decision.reasons == reasons
    assert decision.train == bool(reasons)


def test_new_members_as_a_count_and_as_a_share() -> None:
    by_share = policy(min_new=None, min_new_share=0.5)
    assert decide(by_share, state(admitted_total=299), NOW).reasons == []
    decision = decide(by_share, state(admitted_total=300), NOW)
    assert decision.reasons == ["new_share"]
    assert of(decision, "new_members").bound is None
    assert decide(policy(min_new_share=0.5), STATE, NOW).reasons == ["new_members", "new_share"]


def test_an_empty_buffer_never_trains() -> None:
    empty = state(members=0, answered=0, admitted_total=0, admitted_at_last_run=0, last_run_ms=None, asked=["x"])
    for made in (POLICY, policy(min_new=0, min_new_share=0.1, min_answered=0)):
        assert not decide(made, empty, NOW).train


WEEKLY = {"schedule": "0 3 * * mon", "timezone": "Europe/Berlin", "min_new": None, "max_age_s": None, "min_shift": None}


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)


def test_a_scheduled_time_since_the_last_run_is_a_reason_until_a_run_is_made() -> None:
    made, monday = policy(**WEEKLY), at("2026-09-21T03:00")
    last = state(last_run_ms=at("2026-09-15T12:00"), runs_ms=[])
    before = decide(made, last, monday - 1)
    assert (before.reasons, of(before, "schedule").until_ms) == ([], monday)
    assert decide(made, last, monday).reasons == ["schedule"]
    late = decide(made, last, monday + 20 * DAY_MS)
    assert late.reasons == ["schedule"], "what passed while something else forbade it is made up for"
    assert of(late, "schedule").until_ms == at("2026-10-12T03:00")
    assert decide(made, replace(last, last_run_ms=monday + 1), monday + 2).reasons == []


def test_before_the_first_run_a_schedule_counts_from_the_triggers_first_look() -> None:
    made, monday = policy(**WEEKLY), at("2026-09-21T03:00")
    first = state(last_run_ms=None, watched_since_ms=monday + 1)
    assert decide(made, first, monday + HOUR).reasons == []
    assert decide(made, first, monday + 7 * DAY_MS).reasons == ["schedule"]
    assert decide(made, replace(first, watched_since_ms=None), monday).reasons == []


def test_the_budget_of_runs_is_over_when_the_oldest_is_a_day_old() -> None:
    runs = [NOW - 30 * HOUR, NOW - 3 * HOUR, NOW - 20 * HOUR, NOW - 2 * HOUR]
    decision = decide(POLICY, state(runs_ms=runs), NOW)
    assert (of(decision, "runs_last_day").value, decision.blocked_by) == (3, ["runs_last_day"])
    assert decision.not_before_ms == NOW + 21 * HOUR
    assert decide(POLICY, state(runs_ms=runs), decision.not_before_ms - 1).blocked_by == ["runs_last_day"]
    assert decide(POLICY, state(runs_ms=runs), decision.not_before_ms).train


def test_trainer_hours_count_within_the_last_day_only() -> None:
    spans = [(NOW - 26 * HOUR, NOW - 22 * HOUR), (NOW - 50 * HOUR, NOW - 40 * HOUR), (NOW - 3 * HOUR, NOW + HOUR)]
    decision = decide(policy(max_trainer_hours_per_day=5), state(trained_ms=spans), NOW)
    assert of(decision, "trainer_hours_last_day").value == 2 + 3
    assert decision.not_before_ms == NOW + 1
    backwards = state(trained_ms=[(NOW - HOUR, NOW - 2 * HOUR)])
    assert of(decide(POLICY, backwards, NOW), "trainer_hours_last_day").value == 0, "a clock that was put back"
    running = decide(policy(max_trainer_hours_per_day=5), state(trained_ms=spans, running="r"), NOW)
    assert of(running, "trainer_hours_last_day").until_ms is None, "nobody knows when it ends"


SPANS = st.lists(
    st.tuples(st.integers(0, 48 * HOUR), st.integers(0, 10 * HOUR)).map(lambda t: (NOW - t[0], NOW - t[0] + t[1])),
    max_size=8,
)


@given(spans=SPANS, share=st.floats(0.01, 1))
def test_the_end_of_the_hours_budget_is_its_first_moment(spans: list[tuple[int, int]], share: float) -> None:
    found = state(trained_ms=[(a, min(b, NOW)) for a, b in spans])
    used = of(decide(POLICY, found, NOW), "trainer_hours_last_day").value
    assume(used > 0)
    made = policy(max_trainer_hours_per_day=used * share)
    hours = of(decide(made, found, NOW), "trainer_hours_last_day")
    assert not hours.holds
    assert hours.until_ms is not None
    assert of(decide(made, found, hours.until_ms), "trainer_hours_last_day").holds
    assert not of(decide(made, found, hours.until_ms - 1), "trainer_hours_last_day").holds


@given(
    last=st.one_of(st.none(), st.integers(NOW - 3 * DAY_MS, NOW)),
    runs=st.lists(st.integers(NOW - 2 * DAY_MS, NOW), max_size=6),
    spans=SPANS,
    new=st.integers(0, 400),
    asked=st.booleans(),
    paused=st.booleans(),
    running=st.booleans(),
    quiet=st.sampled_from([[], ["22:00-06:00"], ["Mon 15:00-16:00", "16:00-17:30"], ["00:00-23:59"]]),
    schedule=st.sampled_from([None, "0 * * * *", "0 3 * * tue"]),
)
def test_a_decision_agrees_with_its_conditions_and_time_alone_keeps_its_word(
    last: int | None,
    runs: list[int],
    spans: list[tuple[int, int]],
    new: int,
    asked: bool,
    paused: bool,
    running: bool,
    quiet: list[str],
    schedule: str | None,
) -> None:
    made = policy(
        quiet_hours=quiet, timezone="America/New_York", schedule=schedule, max_trainer_hours_per_day=3, cooldown_s=9_000
    )
    found = state(
        last_run_ms=last,
        runs_ms=runs,
        trained_ms=[(a, min(b, NOW)) for a, b in spans],
        admitted_total=200 + new,
        asked=["x"] if asked else [],
        paused="y" if paused else None,
        running="z" if running else None,
    )
    decision = decide(made, found, NOW)
    counting = [c for c in decision.conditions if c.kind == "must" or (c.kind == "guard" and not asked)]
    reasons = [c.name for c in decision.conditions if c.kind == "reason" and c.holds]
    assert decision.reasons == reasons
    assert decision.train == (bool(reasons) and all(c.holds for c in counting))
    assert decision.blocked_by == [c.name for c in counting if not c.holds]
    for condition in decision.conditions:
        if condition.until_ms is not None:
            assert condition.until_ms > NOW
            # Just before, nothing has changed by time alone; then it has.
            assert of(decide(made, found, condition.until_ms - 1), condition.name).holds == condition.holds
            if condition.name != "not_quiet_hours" or not condition.holds:
                assert of(decide(made, found, condition.until_ms), condition.name).holds
    if decision.not_before_ms is not None:
        assert not decision.train
        assert not decide(made, found, decision.not_before_ms - 1).train


def test_what_it_says_has_the_numbers_in_it() -> None:
    said = {c.name: c.says for c in decide(policy(quiet_hours=["22:00-06:00"]), STATE, NOW).conditions}
    assert said["new_members"] == "100 admitted since the last run (at least 50)"
    assert said["cooldown_s"] == "16.7 min since the last run (at least 10 min)"
    assert said["not_quiet_hours"] == "it is not one of 22:00-06:00"
    assert said["trainer_hours_last_day"] == "0.08 h of training in the last 24 hours"
    assert said["schedule"] == "no schedule is set"
    assert len({c.name for c in decide(POLICY, STATE, NOW).conditions}) == len(said) == 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "0 3 * *"}, "five fields"),
        ({"schedule": "* * */31 2 1L"}, "names no time at all"),
        ({"timezone": "Berlin"}, "is not a time zone"),
        ({"quiet_hours": ["22-6"]}, "is not like"),
        ({"quiet_hours": ["00:00-24:00"]}, "no time of the week"),
        ({"quiet_hours": "22:00-06:00"}, "list"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        policy(**change)


def test_psi_is_zero_for_equal_shapes_and_grows_with_the_shift() -> None:
    assert psi([10, 20, 30], [10, 20, 30]) == 0
    assert psi([100, 200, 300], [1000, 2000, 3000]) < 0.01
    assert 0.2 < psi([100, 200, 300], [300, 200, 100]) < psi([300, 0, 0], [0, 0, 300])


def test_ks_is_the_largest_distance_of_the_cumulative_shares() -> None:
    assert ks([10, 20, 30], [100, 200, 300]) == pytest.approx(0)
    assert ks([50, 50, 0], [0, 50, 50]) == pytest.approx(0.5)
    assert ks([1, 0], [0, 7]) == 1
    assert ks([0, 0], [3, 4]) == 0
    with pytest.raises(ValueError, match="2 and 3 bins"):
        ks([1, 2], [1, 2, 3])


HISTOGRAMS = st.lists(st.integers(0, 1000), min_size=16, max_size=16).filter(any)


@given(before=HISTOGRAMS, after=HISTOGRAMS)
def test_both_measures_are_symmetric_and_within_their_range(before: list[int], after: list[int]) -> None:
    assert 0 <= ks(before, after) <= 1 + 1e-9
    assert ks(before, after) == pytest.approx(ks(after, before))
    assert 0 <= psi(before, after) < math.inf
    assert psi(before, after) == pytest.approx(psi(after, before))


def test_the_measure_of_the_shift_is_a_setting() -> None:
    moved = state(admitted_total=200, histogram=[0, 16, 14])
    assert decide(policy(min_shift=0.15, shift_measure="ks"), moved, NOW).reasons == ["difficulty_shift"]
    found = of(decide(policy(min_shift=0.3, shift_measure="ks"), moved, NOW), "difficulty_shift")
    assert (found.value, found.unit, found.holds) == (pytest.approx(0.2), "KS", False)
