"""`haypile judge`."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.common import JsonOption, print_json, run

if TYPE_CHECKING:
    from trainers.judge_check import Figure

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
    from streams.errors import InvalidRecord
    from streams.judge import Judge
    from streams.records import Message
    from streams.settings import load_settings

    settings = load_settings()
    with _labels("judge check", file):
        from trainers.judge_check import check as figures_of
        from trainers.judge_check import load

        labelled = load(file)

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

    print(f"{found.rows} prompts, {found.unreadable} of them unreadable to the judge; 95 % intervals")
    print(f"{'':10s} {'judge':28s} {'length of the prompt':28s} judge's gain on length")
    for name, *three in (
        ("Spearman", found.spearman, found.spearman_length, found.spearman_gain),
        ("AUC", found.auc, found.auc_length, found.auc_gain),
    ):
        print(f"{name:10s} {'  '.join(f'{_shown(figure):26s}' for figure in three)}".rstrip())
    print(f"AUC is of {found.hard} hard against {found.easy} easy prompts")


@app.command()
def train(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines with a prompt and a label.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the adapter and its card go; must not exist.")],
    base: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The base model (Llama-like); without it the local stack's SmolLM2."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="An adapter to go on from; for SmolLM2 the demo's judge.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="CPU time that training may take.")] = 30.0,
    epochs: Annotated[int, typer.Option(min=1, help="At most this many times over all rows.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Train a judge (a LoRA) on a labelled file of your own, a fifth of which is held out and measured.

    The label is a difficulty from 1 to 9, or hard/easy. Training runs in this process, on the CPU.
    """
    from streams.errors import Fatal, SettingsError
    from streams.settings import load_settings

    settings = load_settings()
    if out.exists():
        raise SettingsError(f"judge train: {out} exists already: name a new folder")
    for name, folder in (("--base", base), ("--start", start)):
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"judge train: {name} {folder} is not a folder")
    with _labels("judge train", file):
        from trainers.base_model import NAME, BaseModelMissing, prepare_smollm2
        from trainers.judge import Plan
        from trainers.judge_own import divided, examples, figures_table, train_own

        divided(examples(file))  # before anything that takes time
        own = base is not None or settings.local.model is not None
        try:
            folder = base or settings.local.model or prepare_smollm2(settings.local.data_dir / "base")
        except BaseModelMissing as error:
            raise Fatal(f"judge train: {error}") from None
        if not own and start is None:
            start = Path(__file__).parents[2] / "trainers" / "judges" / "demo"
        plan = Plan(cpu_minutes=minutes, epochs=epochs)
        found = train_own(file, folder, out, start=start, plan=plan, name=folder.name if own else NAME)
    if as_json:
        print_json(found)
        return
    print(f"{out}: trained on {found.trained_on} prompts, measured on {found.held_out} held-out ones (95 % intervals)")
    print(figures_table(found))
    print(f"serve it with vLLM (--lora-modules judge={out}) and set judge.revision to {found.digest}")


@contextmanager
def _labels(command: str, file: Path) -> "Iterator[None]":
    """What is wrong with the labelled file, or missing on this machine, as one line."""
    from streams.errors import Fatal, SettingsError

    try:
        try:
            from trainers.judge_check import BadLabels
        except ImportError as error:
            raise _missing(command, error) from None
        try:
            yield
        except BadLabels as error:
            raise Fatal(f"{command}: {error}") from None
    except OSError as error:
        raise SettingsError(f"{command}: cannot read {error.filename or file}: {error.strerror or error}") from None
    except ImportError as error:
        raise _missing(command, error) from None


def _missing(command: str, error: ImportError) -> "Exception":
    from streams.errors import Fatal

    return Fatal(f"{command} needs the trainer's packages ({error.name} is missing): pip install 'haypile[trainer]'")


def _shown(figure: "Figure | None") -> str:
    return "-" if figure is None else f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"
