"""`haypile worker --agents trigger` that is killed where a decided run is stored: `before` that or `after`."""

import os
import signal
import sys
from typing import Any

from deploy.worker import run_worker
from streams.settings import load_settings
from streams.training_state import TrainingStateStore

_store = TrainingStateStore.decided


async def _deadly(self: TrainingStateStore, *arguments: Any) -> Any:
    if sys.argv[1] == "after":
        await _store(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)


TrainingStateStore.decided = _deadly  # type: ignore[method-assign]
sys.exit(run_worker(load_settings({"worker": {"agents": ["trigger"], "metrics_port": 0}})))
