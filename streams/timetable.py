"""Local times of the retraining policy: a cron schedule and quiet hours, with a time zone and its clock changes.

All moments are epoch milliseconds. Pure: the time zone's rules come from the system's database, or from `tzdata`.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

DAY_MS = 86_400_000
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_FROM_NOW = re.compile(r"(\d{1,6}(?:\.\d+)?)([smhd])")
_TIME = re.compile(r"\d{2}:\d{2}")
_PERIOD = re.compile(r"(?:(?P<days>[a-z,-]+)\s+)?(?P<start>\d{2}:\d{2})-(?P<end>\d{2}:\d{2})", re.IGNORECASE)


@cache
def zone_of(name: str) -> tzinfo:
    """The time zone of an IANA name (`Europe/Berlin`). Raises `ValueError` for a name that is none."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; a folder's name is an OSError
        raise ValueError(f"{name!r} is not a time zone (an IANA name such as Europe/Berlin)") from None


def next_time(schedule: str, zone: tzinfo, after_ms: int) -> int | None:
    """The first moment after `after_ms` that a cron expression of five fields names; None: none within 50 years.

    Clock changes as in Debian's cron: a time that does not exist comes right after the change, one that exists twice
    comes once, the first time; expressions with `*` for minutes or hours go by real time. Raises `ValueError` for what
    is no expression.
    """
    if len(schedule.split()) != 5:
        raise ValueError(f"{schedule!r} does not have the five fields of a cron expression")
    try:
        for moment in CronSim(schedule, datetime.fromtimestamp(after_ms / 1000, zone)):
            found = _ms(moment)
            if found > after_ms:  # of an hour that exists twice the library names the first one
                return found
    except CronSimError as error:
        raise ValueError(f"{schedule!r} is not a cron expression: {error}") from None
    return None


class QuietPeriod(NamedTuple):
    """Local times, every week. `end` at or before `start` is on the next day; `days` are those of the start."""

    days: frozenset[int]
    """0 is Monday."""
    start: int
    end: int
    """Minutes from the start day's midnight; 1440 is the next midnight, more is the next day."""


def quiet_period(text: str) -> QuietPeriod:
    """`22:00-06:00`, `Mon-Fri 08:00-20:00`, `Sat,Sun 00:00-24:00`. Raises `ValueError`."""
    match = _PERIOD.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not like 22:00-06:00 or Mon-Fri 08:00-20:00")
    start, end = _minutes(match["start"], 1439), _minutes(match["end"], 1440)
    return QuietPeriod(_days(match["days"]), start, end if end > start else end + 1440)


def quiet_periods(texts: Sequence[str]) -> tuple[QuietPeriod, ...]:
    """All of them. Raises `ValueError` for one that cannot be read, and when they leave no time of the week."""
    periods = tuple(quiet_period(text) for text in texts)
    quiet = {
        (day * 1440 + minute) % (7 * 1440)
        for period in periods
        for day in period.days
        for minute in range(period.start, period.end)
    }
    if len(quiet) == 7 * 1440:
        raise ValueError("they leave no time of the week")
    return periods


def quiet_until(periods: Sequence[QuietPeriod], zone: tzinfo, now_ms: int) -> int | None:
    """When the quiet hours end that it is now; None: it is none. Periods that meet are one.

    Where the clock changes, an hour that does not exist or exists twice is given to the quiet hours: they last up to
    an hour longer by the clock, and never less.
    """
    at, today = now_ms, datetime.fromtimestamp(now_ms / 1000, zone).date()
    for _ in range(9):  # days: quiet hours that never end are refused where they are set
        spans = [span for back in (1, 0, -1) for span in _spans(periods, zone, today - timedelta(days=back))]
        ends = [end for start, end in spans if start <= at < end]
        while ends:
            at = max(ends)
            ends = [end for start, end in spans if start <= at < end]
        later = datetime.fromtimestamp(at / 1000, zone).date()
        if later == today:
            break
        today = later
    return at if at > now_ms else None


def read_moment(text: str, zone: tzinfo, now_ms: int) -> int:
    """A moment to come: `90m`, `12h`, `3d` from now, `08:00` next, `2026-11-23` or `2026-11-23T08:00` (in `zone` unless
    it says another). Raises `ValueError`, also for one that has passed.
    """
    text = text.strip()
    if match := _FROM_NOW.fullmatch(text):
        found = now_ms + int(float(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2]] * 1000)
    elif _TIME.fullmatch(text):
        minutes, today = _minutes(text, 1439), datetime.fromtimestamp(now_ms / 1000, zone).date()
        found = next(
            ms for days in range(3) if (ms := _instants(today + timedelta(days=days), minutes, zone)[0]) > now_ms
        )
    else:
        try:
            local = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is not like 2026-11-23T08:00, 08:00, 90m, 12h or 3d") from None
        found = _ms(local if local.tzinfo is not None else local.replace(tzinfo=zone))
    if found <= now_ms:
        raise ValueError(f"{moment(found, zone)} has passed")
    return found


def moment(ms: int, zone: tzinfo) -> str:
    """For people: `2026-11-23 06:00 CET`."""
    return f"{datetime.fromtimestamp(ms / 1000, zone):%Y-%m-%d %H:%M %Z}"


def span(seconds: float) -> str:
    """For people: `45 s`, `12 min`, `3.5 h`, `6 d`."""
    size, unit = next(((s, u) for s, u in _UNITS if seconds >= 2 * s), (1, "s"))
    return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"


def _spans(periods: Sequence[QuietPeriod], zone: tzinfo, day: date) -> Iterator[tuple[int, int]]:
    """From and until of the periods that start on a day."""
    for period in periods:
        if day.weekday() in period.days:
            yield min(_instants(day, period.start, zone)), max(_instants(day, period.end, zone))


def _instants(day: date, minutes: int, zone: tzinfo) -> tuple[int, int]:
    """A local time as a moment, by the clock before a change and by the one after it."""
    days, rest = divmod(minutes, 1440)
    local = datetime.combine(day + timedelta(days=days), time(rest // 60, rest % 60), zone)
    return _ms(local), _ms(local.replace(fold=1))


def _ms(local: datetime) -> int:
    return int(local.timestamp() * 1000)


def _minutes(text: str, most: int) -> int:
    minutes = int(text[:2]) * 60 + int(text[3:])
    if int(text[3:]) > 59 or minutes > most:
        raise ValueError(f"{text} is not a time of the day")
    return minutes


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, _, last = part.partition("-")
        for name in (first, last or first):
            if name not in WEEKDAYS:
                raise ValueError(f"{name!r} is not one of {', '.join(WEEKDAYS)}")
        begin, end = WEEKDAYS.index(first), WEEKDAYS.index(last or first)
        found.update(day % 7 for day in range(begin, (end if end >= begin else end + 7) + 1))
    return frozenset(found)
