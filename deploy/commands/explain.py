"""`haypile explain`."""

from typing import Annotated

import typer

from deploy.commands.common import JsonOption, print_json, run


def explain(
    id: Annotated[str, typer.Argument(metavar="ID", help="The record's id: the given one, or topic:partition:offset.")],
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long to read the topics, the newest records first.")
    ] = 30,
    as_json: JsonOption = False,
) -> None:
    """The whole story of a prompt: where it came from, what the judge said, what became of it, who learned from it.

    Exit code 1 when nothing is known of it.
    """
    from deploy.evidence import gather
    from deploy.explain import lines, tell
    from streams.settings import load_settings

    story = tell(run(gather(load_settings(), id, seconds)))
    if as_json:
        print_json(story)
    else:
        print("\n".join(lines(story)))
    if not story.known:
        raise typer.Exit(1)
