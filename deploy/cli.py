"""The `haypile` command.

Exit codes: 0 done, 1 failed, 2 bad usage or settings. What a command needs it imports when it runs, after its arguments
are parsed: `haypile --help` must stay fast and must import neither torch nor faust (tested).
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.commands import (
    buffer,
    config,
    console,
    dlq,
    doctor,
    eval,
    explain,
    forget,
    http,
    ingest,
    judge,
    models,
    pause,
    processes,
    rescore,
    stack,
    status,
    topics,
    train,
)
from streams.errors import HaypileError, SettingsError

CONFIG_VARIABLE = "HAYPILE_CONFIG"
"""The same as `streams.settings.CONFIG_VARIABLE`; importing that would cost `--help` a quarter of a second."""

app = typer.Typer(
    name="haypile",
    help="Keeps the hardest prompts of a Kafka stream and retrains a model on them when enough has changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings (YAML); without it ./haypile.yaml, if any."),
    ] = None,
) -> None:
    """Options of every command."""
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config.absolute())


app.command("up")(stack.up)
app.command("demo")(stack.demo)
app.command("worker")(processes.worker)
app.command("trainer")(processes.trainer)
app.command("http")(http.http)
app.command("console")(console.console)
app.command("ingest")(ingest.ingest)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("explain")(explain.explain)
app.command("eval")(eval.evaluate)
app.command("forget")(forget.forget)
app.command("train")(train.train)
app.command("pause")(pause.pause)
app.command("resume")(pause.resume)
app.command("rescore")(rescore.rescore)
app.add_typer(topics.app, name="topics")
app.add_typer(buffer.app, name="buffer")
app.add_typer(models.app, name="models")
app.add_typer(judge.app, name="judge")
app.add_typer(dlq.app, name="dlq")
app.add_typer(config.app, name="config")


def main() -> None:
    """Entry point: errors that haypile raises on purpose are lines on stderr, never tracebacks."""
    try:
        app()
    except SettingsError as error:
        print(f"haypile: {error}", file=sys.stderr)
        sys.exit(2)
    except HaypileError as error:
        print(f"haypile: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
