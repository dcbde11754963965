"""`haypile dlq`: the dead letters."""

from typing import Annotated, Any

import typer

from deploy.commands.common import JsonOption, one_line, print_json

app = typer.Typer(help="The dead letters.", no_args_is_help=True)

ReasonOption = Annotated[str | None, typer.Option(help="Only this reason.")]


@app.callback()
def dlq() -> None:
    """The dead letters."""


@app.command("list")
def list_(
    samples: Annotated[int, typer.Option("-n", "--samples", min=0, help="How many of each reason to show.")] = 3,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Dead letters by reason, with the latest samples of each."""
    from deploy.letters import by_reason, read_letters
    from streams.settings import load_settings

    found = by_reason(read_letters(load_settings().kafka))
    if reason is not None:
        found = {name: letters for name, letters in found.items() if name == reason}
    if as_json:
        report: dict[str, Any] = {
            name: {"count": len(letters), "samples": [e.letter for e in letters[-samples:]] if samples else []}
            for name, letters in found.items()
        }
        print_json(report)
        return
    if not found:
        print("no dead letters")
    for name, letters in found.items():
        print(f"{name}: {len(letters)}")
        for entry in letters[max(0, len(letters) - samples) :] if samples else []:
            text = one_line(entry.letter.value.decode("utf-8", "backslashreplace"), 80)
            print(f"  {entry.position} {one_line(entry.letter.error, 100)}")
            print(f"    {text or '(empty)'}")


@app.command()
def show(
    position: Annotated[str, typer.Argument(metavar="TOPIC:PARTITION:OFFSET", help="As `dlq list` prints it.")],
    as_json: JsonOption = False,
) -> None:
    """One dead letter, whole, with its earlier deaths."""
    from deploy.letters import find, read_letters
    from streams.settings import load_settings

    entry = find(read_letters(load_settings().kafka), position)
    if as_json:
        print_json({"letter": entry.letter, "attempts": entry.attempts})
        return
    letter = entry.letter
    print(f"reason    {letter.reason}")
    print(f"error     {letter.error}")
    print(f"from      {entry.position}")
    for attempt in entry.attempts:
        print(f"earlier   {attempt.get('reason')}: {attempt.get('error')} ({attempt.get('at')})")
    print(f"value     {len(letter.value)} bytes")
    print(letter.value.decode("utf-8", "backslashreplace"))


@app.command()
def replay(
    reason: ReasonOption = None,
    edit_with: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="A shell command: the bytes on standard input, what to send on its output."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters back to where they came from, with the trail of their deaths in a header."""
    from deploy.feeding import Feed
    from deploy.letters import Replayed, read_letters
    from deploy.letters import replay as send_back
    from streams.settings import load_settings

    settings = load_settings()
    letters = [e for e in read_letters(settings.kafka) if reason in (None, e.letter.reason)]
    if dry_run or not letters:
        done = Replayed(refused=[])
    else:
        with Feed(settings) as feed:
            done = send_back(feed, letters, edit_with)
    if as_json:
        print_json({"letters": len(letters), "sent": done.sent, "failed": done.failed, "not_sent": done.refused})
    else:
        print(f"{len(letters)} dead letters, {done.sent} sent back, {done.failed} failed")
        for what in done.refused or []:
            print(f"  not sent: {what}")
    if done.failed or done.refused:
        raise typer.Exit(1)
