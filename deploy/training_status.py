"""What operators ask of the trigger, and what it decided last: for `haypile status`, and in words."""

import time
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

import msgspec

from streams.redis_client import connect
from streams.settings import Settings
from streams.timetable import moment, zone_of
from streams.training_orders import AskedRun, Pause, TrainingOrders
from streams.training_state import TrainingStateStore

if TYPE_CHECKING:
    from agents.rules.policy import Decision


class Verdict(msgspec.Struct, kw_only=True):
    """A decision without its conditions."""

    train: bool
    reasons: list[str]
    blocked_by: list[str]
    skipped: list[str]
    not_before_ms: int | None
    at_ms: int

    def says(self, zone: tzinfo) -> str:
        """A line."""
        if self.train:
            skipped = f", although {', '.join(self.skipped)} would forbid it" if self.skipped else ""
            return f"would train: {', '.join(self.reasons)}{skipped}"
        lacks = [] if self.reasons else ["no reason holds"]
        if self.blocked_by:
            after = "" if self.not_before_ms is None else f", not before {moment(self.not_before_ms, zone)}"
            lacks.append(f"blocked by {', '.join(self.blocked_by)}{after}")
        return f"would not train: {'; '.join(lacks)}"


def verdict(decision: "Decision | dict[str, Any]") -> Verdict:
    """Of a decision, or of one that the trigger's memory keeps. Raises `msgspec.MsgspecError` for another version's."""
    return msgspec.convert(decision, Verdict, from_attributes=not isinstance(decision, dict))


async def training_status(settings: Settings) -> dict[str, Any]:
    """Builtins; `lines` are for people. Raises `Transient`."""
    client = connect(settings.redis)
    try:
        orders = await TrainingOrders(client, settings.redis.namespace).read()
        decision = (await TrainingStateStore(client, settings.redis.namespace).load()).last_decision
    finally:
        await client.aclose()
    zone = zone_of(settings.trigger.timezone)
    pause = orders.pause if orders.pause is not None and orders.pause.holds(int(time.time() * 1000)) else None
    try:
        last = None if decision is None else verdict(decision)
    except msgspec.MsgspecError:
        last = None  # of another version
    lines = [] if pause is None else [pause_says(pause, zone)]
    lines += ["paused by the setting trigger.paused"] if settings.trigger.paused else []
    lines += [f"asked for: {asked_says(asked, zone)}" for asked in orders.asked]
    lines.append(f"{last.says(zone)} (at {moment(last.at_ms, zone)})" if last else "the trigger has not decided yet")
    return {
        "paused": msgspec.to_builtins(pause),
        "paused_by_setting": settings.trigger.paused,
        "asked": msgspec.to_builtins(orders.asked),
        "last_decision": msgspec.to_builtins(last),
        "lines": lines,
    }


def pause_says(pause: Pause, zone: tzinfo) -> str:
    """Who paused, since when, until when and why."""
    until = "" if pause.until_ms is None else f" until {moment(pause.until_ms, zone)}"
    why = f": {pause.reason}" if pause.reason else ""
    return f"paused by {pause.by} since {moment(pause.since_ms, zone)}{until}{why}"


def asked_says(asked: AskedRun, zone: tzinfo) -> str:
    """Who asked for a run, when and why."""
    return f"a run for {asked.by} since {moment(asked.at_ms, zone)}{f': {asked.reason}' if asked.reason else ''}"
