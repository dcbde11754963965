"""The process `haypile http`."""

import math

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from deploy.http.app import create_app
from deploy.serving import listen, serve, url_of
from streams.errors import SettingsError
from streams.metrics import HttpMetrics
from streams.settings import Settings


def run_http(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Raises `SettingsError` without keys, `Fatal` when a port is taken."""
    given = settings.http
    if not given.api_keys:
        raise SettingsError(
            "settings: http.api_keys is empty: nobody could send anything (haypile http --new-key NAME)"
        )
    bound = listen(given.host, given.port, "http.port")
    metrics = HttpMetrics(CollectorRegistry())
    if given.metrics_port:
        listen(given.host, given.metrics_port, "http.metrics_port").close()  # its own error would be a traceback
        ProcessCollector(registry=metrics.registry)
        start_http_server(given.metrics_port, registry=metrics.registry)
    print(f"http interface on {url_of(bound)} (OpenAPI: {url_of(bound)}/openapi.json)", flush=True)
    serve(create_app(settings, metrics), bound, math.ceil(given.timeout_s) + 1)
