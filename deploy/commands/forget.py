"""`haypile forget`."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.common import JsonOption, print_json, run

if TYPE_CHECKING:
    from deploy.forget import Report


def forget(
    user: Annotated[str | None, typer.Option(metavar="ID", help="All prompts of this `user_id`.")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="ID", help="One prompt: a record's id, or a prompt_id (all that are equal).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish what was asked for and not finished.")] = False,
    and_future: Annotated[bool, typer.Option("--and-future", help="What comes later, too.")] = False,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Serve the newest ancestor that did not learn from it, and ask for a run."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a user or a prompt out of everything that is stored, and never use what was sent until now again.

    Exit code 1 when something is left: what was removed stays removed, and `--resume` goes on.
    """
    from deploy.forget import Forgetter
    from streams.errors import SettingsError
    from streams.settings import load_settings

    if sum((user is not None, prompt is not None, resume)) != 1:
        raise SettingsError("forget: give one of --user ID, --prompt ID and --resume")
    if resume and (and_future or dry_run):
        raise SettingsError("forget: --resume goes on with what was asked for: no --and-future, no --dry-run")
    kind, id = ("user", user) if user is not None else ("prompt", prompt)
    if not resume and not id:
        raise SettingsError(f"forget: --{kind} is empty")
    settings = load_settings()
    if not (yes or dry_run or resume):
        typer.confirm(f"All of {kind} {id} is removed for good. Go on?", abort=True, err=True)
    forgetter = Forgetter(settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    if resume:
        report = run(forgetter.resume(retrain=retrain))
        if report is None:
            print_json({"requests": []}) if as_json else print("nothing is unfinished")
            return
    else:
        report = run(forgetter.forget(kind, str(id), future=and_future, retrain=retrain, dry_run=dry_run))
    if as_json:
        print_json(report)
    else:
        print("\n".join(_lines(report)))
    if report.left:
        raise typer.Exit(1)


def _lines(report: "Report") -> list[str]:
    told = ["WOULD REMOVE" if report.dry_run else "REMOVED"]
    told += [f"  {count} members of the {name} buffer" for name, count in report.members.items() if count]
    if report.sightings:
        told.append(f"  {report.sightings} prompts out of the memory of exact repeats")
    if report.outcomes:
        told.append(f"  {report.outcomes} outcomes that waited to be published")
    for path, rows in report.snapshots.items():
        told.append(f"  {rows['train']} rows to train on and {rows['eval']} held-out ones of {path}")
    told += [f"  {count} prompts of the gate's report of {version}" for version, count in report.reports.items()]
    told += [f"  checkpoints and adapters of run {run_id}" for run_id in report.runs]
    if len(told) == 1:
        told.append("  nothing: it is not stored")
    if report.adapters:
        told.append("LEARNED FROM IT, and still in the registry")
        how = {"trained": "trained on", "replay": "by replay of", "parent": "goes on from"}
        told += [f"  {a.version}: {how[a.how]} {a.source}" for a in report.adapters]
    if report.untold:
        told.append(f"NOT KNOWN of {', '.join(report.untold)}: their snapshots are not there any more")
    if report.rolled_back_from is not None:
        told.append(f"SERVES    {report.champion or 'the base model'} instead of {report.rolled_back_from}")
    elif report.tainted:
        told.append(f"SERVES    {report.champion}, which learned from it: `haypile forget … --retrain` changes that")
    if report.run_asked:
        told.append("ASKED     for a run without it")
    if report.remains:
        told.append("STAYS ON KAFKA until the broker deletes it; nothing here uses it any more (--json has the places)")
        for left in report.remains:
            until = f"gone by {_time(left.until)}" if left.until else "the broker does not say until when"
            span = f"from {_time(left.oldest)} to {_time(left.newest)}"
            told.append(f"  {left.topic}: {len(left.places)} records {span}, {until}")
    if report.left:
        told.append("LEFT      not done: " + "; ".join(report.left) + " (`haypile forget --resume` goes on)")
    return told


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
