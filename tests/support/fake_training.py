"""A training process that costs nothing, and a trainer service that starts it instead of the real one.

`python -m tests.support.fake_training RUN_DIR` does what `trainers.run` does with its files. What it does wrong is said
by `FAKE_TRAINING`: `ok`, `crash N` (the first N attempts die without a word), `oom` (`oom RUN_ID`: of that run only),
`slow` (never ends), `steps N` (N
steps of a fifth of a second a phase, gone on with from a checkpoint; it reads its snapshot and watches that nobody else
trains meanwhile).
`python -m tests.support.fake_training` is `haypile trainer` with it; `FAKE_TRAINING_LEASE_S` shortens its lease.
"""

import fcntl
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from streams.errors import HaypileError
from streams.settings import load_settings
from streams.snapshots import read_rows
from trainers import launch
from trainers.recipe import Recipe
from trainers.run import BUSY
from trainers.rundir import Failure, Plan, Progress, RunFolder, write_atomic

VARIABLE = "FAKE_TRAINING"
LEASE_VARIABLE = "FAKE_TRAINING_LEASE_S"
STEP_S = 0.2
ORPHAN_S = 2.0
"""A process whose service was killed sees it within a step; longer than this two really train at once."""
WEIGHTS_BYTES = 1_000_000
"""More than a process can write whose disk is "full" (see `tests.chaos.system`)."""
TWO_AT_ONCE = "two-at-once"
"""File in the folder of the runs with what should never happen."""


def command(folder: Path, recipe: Recipe, machine_rank: int = 0) -> list[str]:
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
    if behaviour == "oom" and count in ("", folder.path.name):
        folder.write("error.json", Failure(reason="out_of_memory", error="lower batch_size"))
        return 1
    if behaviour == "steps":
        return attempt(folder, int(count))
    progress = folder.progress()
    for phase in ("sft", "dpo"):
        progress.phase = phase
        folder.write("progress.json", progress)
        with folder.curve.open("a") as curve:
            point = {"phase": phase, "step": 1, "steps": 1, "loss": 1.5, "tokens_per_s": 100.0, "learning_rate": 0.01}
            curve.write(json.dumps(point | {"ts": 1}) + "\n")
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


def attempt(folder: RunFolder, steps: int) -> int:
    """Like `trainers.run.attempt`: one process a run, an error in a file."""
    with (folder.path / ".lock").open("a") as lock, (folder.path.parent / "training.lock").open("a") as others:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return BUSY
        if not _alone(others):
            with (folder.path.parent / TWO_AT_ONCE).open("a") as file:
                file.write(f"{folder.path.name}: another run trains\n")
        try:
            return train_in_steps(folder, steps)
        except HaypileError as error:
            failure = Failure(reason="snapshot", error=str(error))
        except OSError as error:
            print(error, flush=True)
            failure = Failure(reason="unexpected", error=str(error))
        folder.write("error.json", failure)
        return 1


def _alone(lock: object) -> bool:
    deadline = time.monotonic() + ORPHAN_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def train_in_steps(folder: RunFolder, steps: int) -> int:
    plan = folder.read(Plan, "plan.json")
    assert plan is not None
    rows = len(read_rows(plan.snapshot, "train")), len(read_rows(plan.snapshot, "eval"))
    progress = folder.progress()
    progress.metrics |= {"rows": rows[0], "held_out": rows[1]}
    for phase in ("sft", "dpo"):
        if phase not in progress.completed and not _phase(folder, progress, phase, steps):
            return 1  # nobody waits for it any more
    return 0


def _phase(folder: RunFolder, progress: Progress, phase: str, steps: int) -> bool:
    progress.phase = phase
    folder.write("progress.json", progress)
    folder.phase(phase).mkdir(exist_ok=True)
    checkpoint = folder.phase(phase) / "checkpoint"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    parent = os.getppid()
    for step in range(first, steps):
        time.sleep(STEP_S)
        if os.getppid() != parent:
            return False
        with folder.curve.open("a") as curve:
            point = {"phase": phase, "step": step + 1, "loss": 2 - step / steps, "tokens_per_s": 5 / STEP_S, "ts": 1}
            curve.write(json.dumps(point) + "\n")
        if (step + 1) % 2 == 0:
            write_atomic(checkpoint, str(step + 1).encode())
    adapter = folder.adapter(phase)
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8}))
    digest = hashlib.sha256(f"{folder.path.name} {phase}".encode()).digest()
    (adapter / "adapter_model.safetensors").write_bytes(digest * (WEIGHTS_BYTES // len(digest)))
    progress.completed.append(phase)
    progress.metrics |= {f"{phase}_loss_before": 2.0, f"{phase}_loss_after": 1.0, f"{phase}_resumed_at": first}
    folder.write("progress.json", progress)
    return True


def service() -> None:
    from trainers import service as real

    launch.command = command
    real.LEASE_S = float(os.environ.get(LEASE_VARIABLE, real.LEASE_S))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.ERROR)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    real.serve(load_settings(), stop)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(train(RunFolder(Path(sys.argv[1]))))
    service()
