"""Attempts of a run in processes of their own that do what goes wrong: die at a step, run out of memory, count rows.

The processes are forked from one that has torch imported already, so that each costs a fraction of a second.
"""

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers import run
from trainers.rundir import RunFolder

WAIT_S = 180

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["trainers.run", "trainers.sft", "trainers.dpo", "trainers.launch", __name__])


def attempt(folder: RunFolder, die_at: tuple[str, int, str] | None = None, spare_bytes: int | None = None) -> int:
    """Run an attempt; its exit code, negative for a signal.

    `die_at`: SIGKILL in that phase at that step, at a moment that is a method of transformers' `TrainerCallback`.
    `spare_bytes`: what it may allocate beyond what it has when it starts.
    """
    process = _context.Process(target=_attempt, args=(folder.path, die_at, spare_bytes))
    process.start()
    process.join(WAIT_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"an attempt of {folder.path} took over {WAIT_S} s")
    return process.exitcode


def _attempt(path: Path, die_at: tuple[str, int, str] | None, spare_bytes: int | None) -> None:
    import torch

    torch.set_num_threads(1)
    if die_at is not None:
        _die(*die_at)
    if spare_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + spare_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    raise SystemExit(run.attempt(RunFolder(path)))


def _die(phase_name: str, step: int, moment: str) -> None:
    from trainers import phase

    real = getattr(phase.Curve, moment)

    def then_die(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        real(self, args, state, control, **kwargs)
        if self.phase == phase_name and state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(phase.Curve, moment, then_die)


def count_rows(folder: Path) -> None:
    """From here on every row that SFT trains on is noted in `rows-<rank>.jsonl` (token ids without padding)."""
    from trl.trainer.sft_trainer import SFTTrainer

    real = SFTTrainer.training_step

    def noted(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        kept = [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        with (folder / f"rows-{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept))
        return real(self, model, inputs, *rest)

    SFTTrainer.training_step = noted


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m tests.support.attempts RUN_DIR --with-parent`: the training process, with its rows counted."""
    import sys

    arguments = list(argv or sys.argv[1:])
    count_rows(Path(arguments[0]))
    return run.main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
