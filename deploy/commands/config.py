"""`haypile config`."""

from collections.abc import Iterator
from typing import Any

import typer

from deploy.commands.common import JsonOption, console, print_json

app = typer.Typer(help="The settings.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """The settings."""


@app.command()
def show(as_json: JsonOption = False) -> None:
    """Every setting in effect, and where it comes from. Secrets are masked."""
    from deploy.origins import effective_settings

    rows = effective_settings()
    if as_json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return
    from rich.table import Table

    table = Table("setting", "value", "origin", box=None, pad_edge=False)
    for key, value, origin in rows:
        table.add_row(key, _shown(value), origin)
    console().print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return ", ".join(_flat(value)) or "(none)"
    return str(value)


def _flat(values: list[Any]) -> Iterator[str]:
    return (str(value) for value in values)
