"""`haypile train`."""

from typing import Annotated

import typer

from deploy.commands.common import JsonOption, print_json, run


def train(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the policy would decide now.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What the trigger's policy decides now, and why. Runs are requested by the trigger itself."""
    from deploy.decision import decide_now
    from streams.errors import SettingsError
    from streams.settings import load_settings

    if not dry_run:
        raise SettingsError("train: give --dry-run; runs themselves are requested by the agent `trigger`")
    decision = run(decide_now(load_settings()))
    if as_json:
        print_json(decision)
        return
    for condition in decision.conditions:
        bound = "" if condition.bound is None else f" (bound {condition.bound:g})"
        holds = "yes" if condition.holds else "no"
        print(f"{holds:3s} {condition.kind:6s} {condition.name} = {condition.value:g}{bound}")
    if decision.train:
        print(f"would train: {', '.join(decision.reasons)}")
    else:
        lacks = "" if decision.reasons else "no reason holds"
        blocked = f"blocked by {', '.join(decision.blocked_by)}" if decision.blocked_by else ""
        print(f"would not train: {'; '.join(text for text in (lacks, blocked) if text)}")
