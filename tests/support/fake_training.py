"""A training process that costs nothing, and a trainer service that starts it instead of the real one.

`python -m tests.support.fake_training RUN_DIR` does what `trainers.run` does with its files. What it does wrong is said
by `FAKE_TRAINING`: `ok`, `crash N` (the first N attempts die without a word), `oom`, `slow` (never ends).
`python -m tests.support.fake_training` is `haypile trainer` with it.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from streams.settings import load_settings
from trainers import launch
from trainers.recipe import Recipe
from trainers.rundir import Failure, RunFolder

VARIABLE = "FAKE_TRAINING"


def command(folder: Path, recipe: Recipe) -> list[str]:
    """Stands for `trainers.launch.command`."""
    return [sys.executable, "-m", "tests.support.fake_training", str(folder)]


def train(folder: RunFolder) -> int:
    behaviour, _, count = os.environ.get(VARIABLE, "ok").partition(" ")
    attempts = folder.path / "attempts"
    with attempts.open("a") as file:
        file.write("x")
    if behaviour == "crash" and len(attempts.read_text()) <= int(count):
        print("about to die")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "oom":
        folder.write("error.json", Failure(reason="out_of_memory", error="lower batch_size"))
        return 1
    progress = folder.progress()
    for phase in ("sft", "dpo"):
        progress.phase = phase
        folder.write("progress.json", progress)
        with folder.curve.open("a") as curve:
            curve.write(json.dumps({"phase": phase, "step": 1, "loss": 1.5, "ts": 1}) + "\n")
        parent = os.getppid()
        while behaviour == "slow" and os.getppid() == parent:
            time.sleep(0.1)
        if behaviour == "slow":
            return 1  # nobody waits for it any more
        adapter = folder.adapter(phase)
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_config.json").write_text(json.dumps({"r": 8}))
        (adapter / "adapter_model.safetensors").write_bytes(phase.encode())
        progress.completed.append(phase)
        progress.metrics |= {f"{phase}_loss_before": 2.0, f"{phase}_loss_after": 1.0}
        folder.write("progress.json", progress)
    return 0


def service() -> None:
    from trainers import service as real

    launch.command = command
    logging.basicConfig(level=logging.INFO)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    real.serve(load_settings(), stop)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(train(RunFolder(Path(sys.argv[1]))))
    service()
