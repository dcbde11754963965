"""`haypile worker` with a defect: scoring a record that says `kill-me` ends the process at once."""

import os
import signal
import sys

from agents.score import Score
from deploy.worker import run_worker
from streams.app import Inbound
from streams.settings import load_settings

_rate = Score.__call__


async def _deadly(self: Score, record: Inbound) -> str:
    if b"kill-me" in record.value:
        os.kill(os.getpid(), signal.SIGKILL)
    return await _rate(self, record)


Score.__call__ = _deadly  # type: ignore[method-assign]
sys.exit(run_worker(load_settings({"worker": {"agents": ["score", "curate"]}})))
