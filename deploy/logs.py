"""Logs of the long-running processes, on stderr: plain lines, or a JSON object a line (`log_format: json`).

Events that matter have fields of their own in JSON (`extra=` at the call): `hop`, `record`, `reason`, `run_id`, …
Ids and numbers only: a prompt's text is never logged above DEBUG.
"""

import logging
from typing import Literal

LIBRARIES = ("aiokafka", "faust", "mode", "kafka", "uvicorn")
"""They tell what only their authors need; their warnings stay."""


def set_up_logs(level: str, form: Literal["text", "json"] = "text") -> None:
    """Our loggers at `level`, the libraries' at WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def _formatter(form: str) -> logging.Formatter:
    if form == "text":
        return logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    from pythonjsonlogger.json import JsonFormatter

    names = {"levelname": "level", "name": "logger"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="ts")
