"""`haypile pause` and `haypile resume`."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.common import JsonOption, orders_of, print_json, reason_line, run

if TYPE_CHECKING:
    from streams.settings import Settings
    from streams.training_orders import Pause


def pause(
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; `haypile status` shows it.")] = "",
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="WHEN", help="2026-11-23T08:00, 08:00, or from now: 90m, 12h, 3d."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Begin no training run from now on, until `haypile resume` or the time given. A run in progress goes on."""
    from deploy.training_status import pause_says
    from streams.errors import SettingsError
    from streams.settings import load_settings
    from streams.timetable import read_moment, zone_of
    from streams.training_orders import Pause, operator

    settings = load_settings()
    zone, now_ms = zone_of(settings.trigger.timezone), int(time.time() * 1000)
    try:
        until_ms = None if until is None else read_moment(until, zone, now_ms)
    except ValueError as error:
        raise SettingsError(f"pause: --until: {error}") from None
    made = Pause(since_ms=now_ms, until_ms=until_ms, reason=reason_line(reason), by=operator())
    run(_pause(settings, made))
    if as_json:
        print_json(made)
    else:
        print(f"training is {pause_says(made, zone)}")
        print("a run in progress goes on; `haypile resume` ends the pause")


def resume(as_json: JsonOption = False) -> None:
    """End the pause."""
    from deploy.training_status import pause_says
    from streams.settings import load_settings
    from streams.timetable import zone_of

    settings = load_settings()
    ended = run(_resume(settings))
    if as_json:
        print_json({"ended": ended, "paused_by_setting": settings.trigger.paused})
        return
    if ended is None:
        print("training was not paused by `haypile pause`")
    else:
        print(f"training goes on; it was {pause_says(ended, zone_of(settings.trigger.timezone))}")
    if settings.trigger.paused:
        print("it stays paused by the setting trigger.paused")


async def _pause(settings: "Settings", made: "Pause") -> None:
    async with orders_of(settings) as orders:
        await orders.pause(made)


async def _resume(settings: "Settings") -> "Pause | None":
    """The pause that this ended; None: there was none, or it was over."""
    async with orders_of(settings) as orders:
        known = (await orders.read()).pause
        await orders.resume()
    return known if known is not None and known.holds(int(time.time() * 1000)) else None
