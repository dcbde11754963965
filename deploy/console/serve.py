"""The process `haypile console`."""

import logging

from deploy.console.app import create_app
from deploy.serving import listen, serve, url_of
from streams.settings import Settings

DRAIN_S = 2
"""An open page holds its connection for ever."""


def run_console(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Raises `Fatal` when the port is taken."""
    bound = listen(settings.console.host, settings.console.port, "console.port")
    # They come as errors, which the page shows; kafka-python logs each closed connection besides.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    print(f"console on {url_of(bound)}", flush=True)
    serve(create_app(settings), bound, DRAIN_S)
