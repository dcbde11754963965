"""`haypile judge`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deploy.commands.common import JsonOption, print_json, run

app = typer.Typer(help="The judge.", no_args_is_help=True)


@app.callback()
def judge() -> None:
    """The judge."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines with a prompt and a label.")],
    as_json: JsonOption = False,
) -> None:
    """Rate a labelled file: Spearman and AUC, beside what the length of the prompt alone would give.

    The label is a number (difficulty, level) or hard/easy (label, hard).
    """
    from deploy.clients import judge_pool
    from streams.errors import Fatal, InvalidRecord, SettingsError
    from streams.judge import Judge
    from streams.records import Message
    from streams.settings import load_settings
    from trainers.judge_check import BadLabels, Figure, load
    from trainers.judge_check import check as figures_of

    settings = load_settings()
    try:
        labelled = load(file)
    except BadLabels as error:
        raise Fatal(f"judge check: {error}") from None
    except OSError as error:
        raise SettingsError(f"judge check: cannot read {file}: {error}") from None

    async def rate_all(prompts: Sequence[str]) -> list[float]:
        import asyncio

        async with judge_pool(settings) as pool:
            judge = Judge(pool, settings.judge)

            async def one(prompt: str) -> float:
                try:
                    return (await judge.rate([Message("user", prompt)])).difficulty
                except InvalidRecord:
                    return math.nan

            return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))

    found = figures_of(labelled, lambda prompts: run(rate_all(prompts)))
    if as_json:
        print_json(found)
        return

    def shown(figure: Figure | None) -> str:
        return "-" if figure is None else f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"

    print(f"{found.rows} prompts, {found.unreadable} of them unreadable to the judge; 95 % intervals")
    print(f"{'':10s} {'judge':28s} {'length of the prompt':28s} judge's gain on length")
    for name, *three in (
        ("Spearman", found.spearman, found.spearman_length, found.spearman_gain),
        ("AUC", found.auc, found.auc_length, found.auc_gain),
    ):
        print(f"{name:10s} {'  '.join(f'{shown(figure):26s}' for figure in three)}".rstrip())
    print(f"AUC is of {found.hard} hard against {found.easy} easy prompts")
