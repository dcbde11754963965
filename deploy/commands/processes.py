"""`haypile worker` and `haypile trainer`: the two long-running processes."""

from typing import Annotated

import typer


def worker(
    agents: Annotated[
        str | None, typer.Option(metavar="A,B", help="Which hops to run; without it worker.agents of the settings.")
    ] = None,
) -> None:
    """Run agents (ingest, score, curate, answer, trigger) until SIGTERM or Ctrl-C."""
    from deploy.logs import set_up_logs
    from streams.settings import load_settings

    flags = {} if agents is None else {"worker": {"agents": [name.strip() for name in agents.split(",")]}}
    settings = load_settings(flags)
    set_up_logs(settings.log_level, settings.log_format)

    from deploy.worker import run_worker

    raise typer.Exit(run_worker(settings))


def trainer(
    join: Annotated[
        int | None,
        typer.Option(metavar="RANK", min=1, help="Be machine RANK (1, 2, …) of a recipe that trains on several."),
    ] = None,
) -> None:
    """Do training runs as they are requested, until SIGTERM or Ctrl-C."""
    import signal
    import threading

    from deploy.logs import set_up_logs
    from streams.settings import load_settings

    settings = load_settings()
    set_up_logs(settings.log_level, settings.log_format)
    stop = threading.Event()
    if join is not None:
        from trainers.join import run

        run(settings.training.work_dir, join)
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    from trainers.service import serve

    serve(settings, stop)
