"""`haypile up` and `haypile demo`: everything on this machine."""

import typer


def up() -> None:
    """Start broker, Redis, vLLM, worker, trainer and console here; end all of them on Ctrl-C, or when one ends.

    A part whose address is in the settings is used instead of started.
    """
    from deploy.local.console import show_stack

    raise typer.Exit(show_stack())


def demo() -> None:
    """The whole loop on this machine, from prompts to a promoted or rejected adapter; ends by itself."""
    from deploy.demo.run import run_demo

    raise typer.Exit(run_demo())
