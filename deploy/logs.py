"""Logs of the long-running processes: plain lines on stderr."""

import logging

LIBRARIES = ("aiokafka", "faust", "mode", "kafka", "uvicorn")
"""They tell what only their authors need; their warnings stay."""


def set_up_logs(level: str) -> None:
    """Our loggers at `level`, the libraries' at WARNING."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
