"""`haypile train`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.commands.common import JsonOption, orders_of, print_json, reason_line, run

if TYPE_CHECKING:
    from datetime import tzinfo

    from agents.rules.policy import Condition, Decision
    from streams.settings import Settings
    from streams.training_orders import AskedRun


def train(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the policy would decide now.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Ask for one run, whatever reasons and guards say.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Take back what was asked for and is not begun.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; goes with --now.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What the trigger's policy decides now, and why; or ask it for a run.

    A run that is asked for (--now) needs no reason and waits for no guard: minimum fill, cooldown, budgets, quiet
    hours. It does wait for what every run needs: members with their answers, the end of the run in progress, no pause.
    """
    from deploy.training_status import asked_says, verdict
    from streams.errors import SettingsError
    from streams.settings import load_settings
    from streams.timetable import zone_of

    if [dry_run, now, cancel].count(True) != 1:
        raise SettingsError("train: give one of --dry-run, --now and --cancel")
    if reason and not now:
        raise SettingsError("train: --reason goes with --now")
    settings = load_settings()
    zone = zone_of(settings.trigger.timezone)
    if dry_run:
        from deploy.decision import decide_now

        decision = run(decide_now(settings))
        lines = [*(_line(condition) for condition in decision.conditions), verdict(decision).says(zone)]
        found: Any = decision
    elif now:
        asked, outlook = run(_ask(settings, reason_line(reason)))
        found, lines = _asked(asked, outlook, settings.trigger.interval_s, zone)
    else:
        withdrawn = run(_withdraw(settings))
        found = {"withdrawn": withdrawn}
        lines = [f"taken back: {asked_says(asked, zone)}" for asked in withdrawn] or [
            "no run is asked for that is not begun"
        ]
    if as_json:
        print_json(found)
    else:
        print("\n".join(lines))


async def _ask(settings: "Settings", reason: str) -> "tuple[AskedRun, Decision | str]":
    """The request, and what the policy says to it (why not, where that is not known)."""
    from deploy.decision import decide_now
    from streams.errors import Transient
    from streams.redis_client import connect
    from streams.training_orders import request_run

    client = connect(settings.redis)
    try:
        asked = await request_run(client, settings.redis.namespace, reason)
    finally:
        await client.aclose()
    try:
        return asked, await decide_now(settings)
    except Transient as error:
        return asked, str(error)


async def _withdraw(settings: "Settings") -> "list[AskedRun]":
    async with orders_of(settings) as orders:
        return await orders.withdraw()


def _asked(
    asked: "AskedRun", outlook: "Decision | str", interval_s: float, zone: "tzinfo"
) -> tuple[dict[str, Any], list[str]]:
    from deploy.training_status import asked_says

    found: dict[str, Any] = {"asked": asked, "taken": False, "waits_for": [], "skips": [], "not_known": None}
    lines = [f"asked for: {asked_says(asked, zone)}"]
    if isinstance(outlook, str):
        found["not_known"] = outlook
        lines.append(f"what it waits for is not known: {outlook}")
    elif "asked" not in outlook.reasons:
        found["taken"] = True
        return found, [*lines, "the trigger has taken it up already"]
    else:
        waits_for = [condition for condition in outlook.conditions if condition.name in outlook.blocked_by]
        found |= {"waits_for": waits_for, "skips": outlook.skipped}
        lines += [f"it waits for {condition.name}: {condition.says}" for condition in waits_for]
        if outlook.skipped:
            lines.append(f"it does not wait for {', '.join(outlook.skipped)}")
    return found, [
        *lines,
        f"the trigger looks every {interval_s:g} s; until then `haypile train --cancel` takes it back",
    ]


def _line(condition: "Condition") -> str:
    unit = f" {condition.unit}" if condition.unit else ""
    bound = "" if condition.bound is None else f" (bound {condition.bound:g})"
    holds = "yes" if condition.holds else "no"
    return f"{holds:3s} {condition.kind:6s} {condition.name} = {condition.value:g}{unit}{bound}: {condition.says}"
