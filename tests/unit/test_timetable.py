"""Schedules and quiet hours by the local clock, also where it is put forward and back."""

import re
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.timetable import (
    DAY_MS,
    QuietPeriod,
    next_time,
    quiet_period,
    quiet_periods,
    quiet_until,
    read_moment,
    span,
    zone_of,
)

BERLIN = zone_of("Europe/Berlin")
"""Put forward on 2026-03-29, 02:00 → 03:00, and back on 2026-10-25, 03:00 → 02:00."""
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "America/Santiago"]
"""Lord Howe's change is of half an hour, Santiago's is at midnight."""
YEAR = st.integers(1_767_225_600, 1_798_761_600).map(lambda s: s * 1000)
"""Moments of 2026."""


def ms(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> int:
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(local.timestamp() * 1000)


def local(moment_ms: int | None, zone: str = "Europe/Berlin") -> str:
    assert moment_ms is not None
    return datetime.fromtimestamp(moment_ms / 1000, ZoneInfo(zone)).isoformat(timespec="minutes")


def test_a_schedule_names_local_times() -> None:
    assert local(next_time("0 3 * * sat", BERLIN, ms("2026-11-22T12:00"))) == "2026-11-28T03:00+01:00"
    assert local(next_time("0 3 * * sat", BERLIN, ms("2026-06-27T03:00"))) == "2026-07-04T03:00+02:00"
    assert local(next_time("*/15 * * * *", BERLIN, ms("2026-11-22T12:00"))) == "2026-11-22T12:15+01:00"


@pytest.mark.parametrize(
    ("after", "fold", "expected"),
    [
        ("2026-03-28T12:00", 0, "2026-03-29T03:00+02:00"),  # 02:30 does not exist: right after the change
        ("2026-03-29T03:00", 0, "2026-03-30T02:30+02:00"),
        ("2026-10-24T12:00", 0, "2026-10-25T02:30+02:00"),  # exists twice: once, the first time
        ("2026-10-25T02:30", 0, "2026-10-26T02:30+01:00"),
        ("2026-10-25T02:10", 1, "2026-10-26T02:30+01:00"),  # between the two
    ],
)
def test_a_scheduled_time_comes_once_where_the_clock_changes(after: str, fold: int, expected: str) -> None:
    assert local(next_time("30 2 * * *", BERLIN, ms(after, fold=fold))) == expected


@given(
    schedule=st.sampled_from(
        ["30 2 * * *", "*/20 * * * *", "15 */6 * * *", "0 0 1 * *", "59 23 * * sun", "0 1-3 * * *"]
    ),
    zone=st.sampled_from(ZONES),
    after_ms=YEAR,
)
@example(schedule="30 2 * * *", zone="Europe/Berlin", after_ms=1_792_890_600_500)
def test_the_next_time_is_later_and_none_is_passed_over(schedule: str, zone: str, after_ms: int) -> None:
    found = next_time(schedule, zone_of(zone), after_ms)
    assert found is not None
    assert found > after_ms
    between = next_time(schedule, zone_of(zone), (after_ms + found) // 2 - 1)
    assert between is not None
    assert between >= found


@pytest.mark.parametrize("text", ["", "* * * *", "0 0 0 * * *", "61 * * * *", "0 0 30 2 *", "often"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        next_time(text, BERLIN, 0)


def test_a_schedule_without_any_time_has_none() -> None:
    assert next_time("0 0 31 2 mon", BERLIN, 0) is not None, "day or weekday: cron's rule"
    assert next_time("* * */31 2 1L", BERLIN, 0) is None, "the first of February is never its last Monday"


def test_quiet_hours_over_midnight_belong_to_the_day_they_start_on() -> None:
    periods = quiet_periods(["Fri 22:00-06:00"])
    assert local(quiet_until(periods, BERLIN, ms("2026-11-27T23:00"))) == "2026-11-28T06:00+01:00"
    assert local(quiet_until(periods, BERLIN, ms("2026-11-28T05:59"))) == "2026-11-28T06:00+01:00"
    for outside in ("2026-11-28T06:00", "2026-11-27T05:00", "2026-11-27T21:59", "2026-11-28T22:30"):
        assert quiet_until(periods, BERLIN, ms(outside)) is None


def test_quiet_hours_that_meet_are_one() -> None:
    periods = quiet_periods(["Mon-Fri 08:00-20:00", "Mon-Fri 20:00-00:00", "Sat,Sun 00:00-24:00"])
    assert local(quiet_until(periods, BERLIN, ms("2026-11-27T09:00"))) == "2026-11-30T00:00+01:00"
    assert quiet_until(periods, BERLIN, ms("2026-11-30T07:59")) is None


def test_days_and_times_as_they_are_written() -> None:
    every = frozenset(range(7))
    assert quiet_period("22:00-06:00") == QuietPeriod(every, 1320, 1800)
    assert quiet_period("fri-mon 00:00-24:00") == QuietPeriod(frozenset({4, 5, 6, 0}), 0, 1440)
    assert quiet_period(" Tue,Thu 12:30-12:30 ") == QuietPeriod(frozenset({1, 3}), 750, 2190), "a whole day"


@pytest.mark.parametrize(
    "text", ["22-6", "25:00-06:00", "22:60-23:00", "24:00-06:00", "Mo 08:00-20:00", "", "08:00-24:01"]
)
def test_what_is_no_quiet_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        quiet_period(text)


def test_quiet_hours_must_leave_some_time() -> None:
    with pytest.raises(ValueError, match="no time of the week"):
        quiet_periods(["Mon-Sat 00:00-24:00", "Sun 06:00-06:00", "Sat 23:00-06:00"])
    assert quiet_periods(["Mon-Sat 00:00-24:00", "Sun 00:00-23:59"])


PERIODS = st.builds(
    lambda days, start, end: QuietPeriod(frozenset(days), start, end if end > start else end + 1440),
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(0, 1440),
)


def by_the_clock(period: QuietPeriod, zone: str, now_ms: int) -> bool:
    """Whether the local clock shows a time of the period."""
    clock = datetime.fromtimestamp(now_ms / 1000, ZoneInfo(zone)).replace(tzinfo=None)
    for back in (0, 1):
        day = clock.date() - timedelta(days=back)
        begin = datetime.combine(day, datetime.min.time())
        if day.weekday() in period.days and period.start <= (clock - begin).total_seconds() / 60 < period.end:
            return True
    return False


@given(period=PERIODS, zone=st.sampled_from(ZONES), now_ms=YEAR)
@example(period=quiet_period("01:00-02:30"), zone="Europe/Berlin", now_ms=1_792_888_200_000)  # the second 02:10
@example(period=quiet_period("02:30-04:00"), zone="Europe/Berlin", now_ms=1_774_746_060_000)  # 03:01, after the gap
def test_quiet_hours_are_never_less_than_the_clock_says_and_at_most_an_hour_more(
    period: QuietPeriod, zone: str, now_ms: int
) -> None:
    until = quiet_until([period], zone_of(zone), now_ms)
    if by_the_clock(period, zone, now_ms):
        assert until is not None
    if until is not None:
        hour = 3_600_000
        assert any(by_the_clock(period, zone, now_ms + shift) for shift in (0, -hour, hour)), "an hour at a change"
        assert now_ms < until
    changes = [datetime.fromtimestamp((now_ms + d * DAY_MS) / 1000, ZoneInfo(zone)).utcoffset() for d in (-2, 0, 2)]
    if len(set(changes)) == 1:
        assert (until is not None) == by_the_clock(period, zone, now_ms)


@given(period=PERIODS, zone=st.sampled_from(ZONES), now_ms=YEAR)
def test_the_end_of_quiet_hours_is_their_first_moment_without(period: QuietPeriod, zone: str, now_ms: int) -> None:
    until = quiet_until([period], zone_of(zone), now_ms)
    if until is not None and until - now_ms < 7 * DAY_MS:
        assert quiet_until([period], zone_of(zone), until) is None
        assert quiet_until([period], zone_of(zone), until - 1) == until


def test_where_the_clock_changes_quiet_hours_are_not_cut_in_two() -> None:
    night = quiet_periods(["01:00-02:30"])
    assert local(quiet_until(night, BERLIN, ms("2026-10-25T02:20"))) == "2026-10-25T02:30+01:00", "the second 02:30"
    assert local(quiet_until(night, BERLIN, ms("2026-03-29T01:30"))) == "2026-03-29T03:30+02:00"


def test_moments_that_operators_give() -> None:
    now = ms("2026-11-22T12:00")
    assert read_moment("90m", BERLIN, now) == now + 90 * 60_000
    assert read_moment("1.5d", BERLIN, now) == now + 36 * 3_600_000
    assert local(read_moment("13:00", BERLIN, now)) == "2026-11-22T13:00+01:00"
    assert local(read_moment("08:00", BERLIN, now)) == "2026-11-23T08:00+01:00"
    assert local(read_moment("2026-12-01", BERLIN, now)) == "2026-12-01T00:00+01:00"
    assert local(read_moment("2026-12-01T09:00Z", BERLIN, now)) == "2026-12-01T10:00+01:00"
    for text, said in (("2026-11-22T11:59", "has passed"), ("0h", "has passed"), ("tomorrow", "not like")):
        with pytest.raises(ValueError, match=said):
            read_moment(text, BERLIN, now)


def test_time_zones_and_spans() -> None:
    for name in ("Mars/Olympus", "", "Europe", "../etc/passwd"):
        with pytest.raises(ValueError, match="is not a time zone"):
            zone_of(name)
    assert [span(s) for s in (0.5, 119, 120, 7_199, 7_200, 172_800, 604_800)] == [
        "0.5 s", "119 s", "2 min", "120 min", "2 h", "2 d", "7 d",
    ]  # fmt: skip
