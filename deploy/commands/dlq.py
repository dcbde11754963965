"""`haypile dlq`: the dead letters."""

from typing import Annotated, Any

import typer

from deploy.commands.common import JsonOption, one_line, print_json

app = typer.Typer(help="The dead letters.", no_args_is_help=True)


@app.callback()
def dlq() -> None:
    """The dead letters."""


@app.command("list")
def list_(
    samples: Annotated[int, typer.Option("-n", "--samples", min=0, help="How many of each reason to show.")] = 3,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Dead letters by reason, with the latest samples of each."""
    from deploy.letters import dead_letters_by_reason
    from streams.settings import load_settings

    letters = dead_letters_by_reason(load_settings().kafka)
    if reason is not None:
        letters = {name: found for name, found in letters.items() if name == reason}
    if as_json:
        report: dict[str, Any] = {
            name: {"count": len(found), "samples": found[-samples:] if samples else []}
            for name, found in letters.items()
        }
        print_json(report)
        return
    if not letters:
        print("no dead letters")
    for name, found in letters.items():
        print(f"{name}: {len(found)}")
        for letter in found[max(0, len(found) - samples) :] if samples else []:
            text = one_line(letter.value.decode("utf-8", "backslashreplace"), 80)
            print(f"  {letter.topic}:{letter.partition}:{letter.offset} {one_line(letter.error, 100)}")
            print(f"    {text or '(empty)'}")
