"""`haypile console`."""


def console() -> None:
    """Show what happens as a web page, until SIGTERM or Ctrl-C."""
    from deploy.logs import set_up_logs
    from streams.settings import load_settings

    settings = load_settings()
    set_up_logs(settings.log_level)

    from deploy.console.serve import run_console

    run_console(settings)
