"""`haypile buffer`: what was kept."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.commands.common import (
    JsonOption,
    buffer_of,
    console,
    forgotten_log,
    generations_of,
    needs,
    one_line,
    print_json,
    run,
)
from deploy.set_formats import SetFormat

if TYPE_CHECKING:
    from streams.buffer.base import BufferName
    from streams.settings import Settings

app = typer.Typer(help="The rolling buffer.", no_args_is_help=True)

EvalOption = Annotated[bool, typer.Option("--eval", help="The held-out buffer instead of the main one.")]


@app.callback()
def buffer() -> None:
    """The rolling buffer."""


@app.command()
def top(
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over first.")] = 0,
    lowest: Annotated[bool, typer.Option("--lowest", help="The weakest instead of the hardest.")] = False,
    held_out: EvalOption = False,
    as_json: JsonOption = False,
) -> None:
    """The hardest members."""
    from rich.table import Table

    from streams.buffer.minhash import conversation_text
    from streams.records import Member
    from streams.settings import load_settings

    settings = load_settings()

    async def read() -> list[Member]:
        async with buffer_of(settings, "eval" if held_out else "main") as buffer:
            return await buffer.top(n, offset, lowest)

    members = run(read())
    if as_json:
        print_json(members)
        return
    table = Table("rank", "difficulty", "quality", "category", "answers", "alike", "prompt", box=None, pad_edge=False)
    for rank, member in enumerate(members, start=offset + 1):
        prompt = member.prompt
        table.add_row(
            f"-{rank}" if lowest else str(rank),
            f"{prompt.difficulty:.2f}",
            f"{prompt.quality:.2f}",
            prompt.category,
            str(len(member.candidates)),
            str(member.near_duplicates),
            one_line(conversation_text(prompt.messages), 90),
        )
    console().print(table)


@app.command()
def stats(held_out: EvalOption = False, as_json: JsonOption = False) -> None:
    """Size, threshold, categories and the spread of difficulty."""
    from streams.buffer.base import BufferStats
    from streams.settings import load_settings

    settings = load_settings()

    async def read() -> BufferStats:
        async with buffer_of(settings, "eval" if held_out else "main") as buffer:
            return await buffer.stats()

    found = run(read())
    if as_json:
        print_json(found)
        return
    print(f"members      {found.size} of {found.capacity}, {found.answered} answered")
    print(f"totals       {found.admitted_total} admitted, {found.evicted_total} evicted")
    if found.size:
        print(f"difficulty   {found.lowest_difficulty:.2f} (ranked last) to {found.highest_difficulty:.2f} (first)")
        print(f"threshold    {'none, there is room' if found.threshold is None else f'{found.threshold:.4f}'}")
        print(f"judge        {found.judge}")
        widest = max(found.histogram)
        for number, count in enumerate(found.histogram):
            if count:
                print(f"  {1 + number / 2:.1f}-{1.5 + number / 2:.1f} {count:6d} {'#' * max(1, count * 40 // widest)}")
        for category, count in sorted(found.categories.items(), key=lambda item: -item[1]):
            print(f"  {category:12s} {count:6d}")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A folder that does not exist yet.")],
    format: Annotated[SetFormat, typer.Option(help="Whose columns.")] = SetFormat.pika,
    as_json: JsonOption = False,
) -> None:
    """Write the members' best answers (SFT) and pairs (preference) as Parquet with a card, by the recipe's rules."""
    from deploy.curated_sets import curate, write_sets
    from streams.records import Member
    from streams.settings import load_settings
    from trainers.folders import new_folder
    from trainers.recipe import load_recipe

    settings = load_settings()
    recipe = load_recipe(settings.training.recipe)

    async def read(name: "BufferName") -> list[Member]:
        async with buffer_of(settings, name) as buffer:
            return [member async for chunk in buffer.iterate() for member in chunk]

    with new_folder(out) as folder, needs("worker"):
        held_out = {member.prompt.prompt_id for member in run(read("eval"))}
        curated = curate(run(read("main")), held_out, recipe, format)
        counts = write_sets(curated, folder, format)
    if as_json:
        print_json({"rows": counts, "left_out": curated.left_out, "members": curated.members, "folder": out})
        return
    print(f"{counts['sft']} rows of SFT and {counts['preference']} pairs of {curated.members} members: {out}")
    for reason, count in sorted(curated.left_out.items()):
        print(f"  left out: {count} {reason}")


@app.command()
def rebuild(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    judge: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Whose ratings; without it the judge whose they are, or the settings'."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Forget both buffers and fill them again from what the log (`prompts.scored`) still holds.

    Of the ratings of one judge: others are passed over, but for those of a rescoring that is under way.
    """
    from streams.settings import load_settings

    settings = load_settings()
    if not yes:
        typer.confirm(
            "The buffers in Redis are emptied and filled again from the log. Answers are lost. Go on?", abort=True
        )
    found = run(_rebuild(settings, judge))
    if as_json:
        print_json(found)
        return
    print(f"{found['replayed']} records of {len(found['partitions'])} partitions replayed, of judge {found['judge']}")
    if found["passed_over"]:
        others = ", ".join(f"{count} of {name}" for name, count in found["passed_over"].items())
        print(f"passed over, because another judge rated them: {others}")


async def _rebuild(settings: "Settings", judge: str | None) -> dict[str, Any]:
    """What was replayed. Workers may go on meanwhile: what they apply is applied once."""
    import asyncio
    import time
    from collections import Counter

    from agents.curate import Curator, replay
    from agents.scored_log import Log
    from streams.judge import identity_of
    from streams.topics import create_topics, topic_names

    log = Log(settings.kafka, topic_names(settings.kafka))
    await asyncio.to_thread(create_topics, settings.kafka)  # one may be of a later version than this installation
    async with generations_of(settings) as generations, forgotten_log(settings) as forgotten:
        state = await generations.read()
        if judge is not None and judge != state.judge and state.next is not None:
            await generations.cancel()  # it was for members of another judge
        judge = judge or state.judge or identity_of(settings.judge)
        curator = Curator(
            settings.buffer,
            generations.main,
            generations.held_out,
            lambda: int(time.time() * 1000),
            generations=generations,
            only=judge,
            forgotten=forgotten.known,
            refresh=forgotten.refresh,
        )
        committed = await log.committed()
        await generations.main.clear()
        await generations.held_out.clear()
        if (await generations.read()).next is not None:
            await generations.next_main.clear()
            await generations.next_held_out.clear()
        others: Counter[str] = Counter()
        counts = {p: await replay(log, curator, p, 0, end, others=others) for p, end in sorted(committed.items())}
    return {
        "replayed": sum(counts.values()),
        "partitions": counts,
        "judge": judge,
        "passed_over": dict(others),
    }
