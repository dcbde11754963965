"""`haypile models`: the registry of adapters."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from deploy.commands.common import JsonOption, console, print_json, run

app = typer.Typer(help="The adapters that were trained.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """The adapters that were trained."""


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Every version, oldest first; the champion is marked."""
    from rich.table import Table

    from streams.settings import load_settings
    from trainers.registry import Registry

    registry = Registry(load_settings().training.registry)
    champion = registry.champion().version
    versions = registry.versions()
    if as_json:
        print_json({"champion": champion, "versions": versions})
        return
    table = Table("", "version", "made", "parent", "win rate", "verdict", box=None, pad_edge=False)
    table.add_row("" if champion else "*", "(base model)", "", "", "", "")
    for manifest in versions:
        gate = manifest.gate or {}
        rate = gate.get("win_rate")
        table.add_row(
            "*" if manifest.version == champion else "",
            manifest.version,
            f"{datetime.fromtimestamp(manifest.created_at / 1000, UTC):%Y-%m-%d %H:%M}",
            manifest.parent or "base",
            "" if rate is None else f"{rate:.2f}",
            {True: "promote", False: "reject", None: ""}[gate.get("promote")],
        )
    console().print(table)


@app.command()
def show(version: Annotated[str, typer.Argument(help="A version of `models list`, or `champion`.")]) -> None:
    """All that is known of a version, as JSON."""
    from streams.errors import Fatal
    from streams.settings import load_settings
    from trainers.registry import Registry

    registry = Registry(load_settings().training.registry)
    if version == "champion":
        champion = registry.champion().version
        if champion is None:
            raise Fatal("the base model serves: no adapter is the champion")
        version = champion
    print_json(registry.show(version))


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "asked for at the command line",
    as_json: JsonOption = False,
) -> None:
    """Serve the champion before this one again, on every server."""
    import getpass

    from streams.settings import load_settings
    from trainers import promotion
    from trainers.registry import Registry

    settings = load_settings()
    registry = Registry(settings.training.registry)
    before = registry.champion().version
    run(promotion.rollback(settings.serving, registry, reason=reason, by=getpass.getuser()))
    after = registry.champion().version
    if as_json:
        print_json({"before": before, "champion": after})
    else:
        servers = ", ".join(settings.serving.urls)
        print(f"{before or 'the base model'} was replaced by {after or 'the base model'} on {servers}")
