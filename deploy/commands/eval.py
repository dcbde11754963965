"""`haypile eval`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.commands.common import JsonOption, print_json, run

if TYPE_CHECKING:
    from trainers.verdict import GateReport


class By(StrEnum):
    """How two models are compared."""

    reward = "reward"
    judge_pairs = "judge_pairs"


def evaluate(
    suite: Annotated[
        Path, typer.Option(metavar="FILE", help="Questions as Arena-Hard, AlpacaEval or MT-Bench publish them.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="`champion`, `base`, a version of `models list`, or a served name.")
    ] = "champion",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the answers go.")] = Path("var/eval"),
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another model: it answers too, and both are compared.")
    ] = None,
    by: Annotated[By, typer.Option(help="How: answers rated alone, or pairs shown to the judge.")] = By.reward,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer; less where the context leaves less.")] = 4096,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: the same answer every time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 17,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions in flight for each server.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Answer a suite's questions, in the format that the suite's own judge reads; goes on where it was ended.

    Exit code 1 when a question has no answer because the model cannot take it: it is left out of the file, and named.
    """
    from deploy import suites
    from streams.errors import Fatal, SettingsError
    from streams.settings import load_settings
    from trainers.registry import Registry
    from trainers.suite import read_suite

    settings = load_settings()
    read = read_suite(suite)
    sampling = suites.Sampling(max_tokens, temperature, seed, concurrency)
    registry = Registry(settings.training.registry)
    models = [suites.meant_by(name, settings, registry) for name in (model, baseline) if name is not None]
    if len(models) == 2 and models[0] == models[1]:
        raise SettingsError(f"--baseline: {baseline} is the model itself")
    report = None
    try:
        answered = [run(suites.answer(read, meant, out, settings, sampling)) for meant in models]
        if len(answered) == 2:
            report = run(suites.compare(read, answered[1], answered[0], out, settings, by.value))
    except OSError as error:
        raise Fatal(f"eval: cannot write {error.filename or out}: {error.strerror or error}") from None
    if as_json:
        told = [{"model": m.model, "file": m.file, "answered": m.answered, "refused": m.refused} for m in answered]
        print_json(
            {"format": read.format, "questions": len(read.questions), "models": told, "compared": figures(report)}
        )
    else:
        for made in answered:
            print(f"{made.model}: {made.answered} of {len(read.questions)} questions answered: {made.file}")
            for key, why in made.refused.items():
                print(f"  no answer to {key}: {why}")
        if report is not None:
            fair = report.length_controlled
            print(
                f"{report.challenger} against {report.champion}: {report.wins} won, {report.losses} lost, "
                f"{report.ties} tied; win rate {report.win_rate:.3f} [{report.lower:.3f}, {report.upper:.3f}], "
                f"at equal length {fair.win_rate:.3f} [{fair.lower:.3f}, {fair.upper:.3f}]: {out / 'compare.html'}"
            )
    if any(made.refused for made in answered):
        raise typer.Exit(1)


def figures(report: "GateReport | None") -> "dict[str, Any] | None":
    """A comparison without its rows: they are in compare.json."""
    if report is None:
        return None
    return {name: getattr(report, name) for name in report.__struct_fields__ if name != "rows"}
