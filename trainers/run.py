"""The training process: `python -m trainers.run RUN_DIR`. SFT, then DPO; ends with 0, or 1 and `error.json`.

A process of its own, so that memory (of a GPU above all) is given back when it ends, that a crash of it is an exit code
for the service, and that it can be killed at any moment: phases that are complete are skipped when it is started again,
the one that was cut short goes on from its last complete checkpoint.
"""

import argparse
import fcntl
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streams.errors import HaypileError, SettingsError
from streams.records import Forgotten
from trainers.dataset import Row, TrainingSet, Turns, build
from trainers.rundir import Failure, Metrics, Plan, Progress, RunFolder

log = logging.getLogger("trainers.run")

BUSY = 75
"""Exit code (EX_TEMPFAIL) when another process trains in the folder: wait, nothing is wrong."""
NO_CPU_MEMORY = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")
"""What torch says when the machine's memory is at its end (of a GPU it has a class of its own)."""


def main(argv: Sequence[str] | None = None) -> int:
    """See the module. `--with-parent`: end when standard input does, that is, when the service is gone."""
    parser = argparse.ArgumentParser(prog="python -m trainers.run", description="train the run in a folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--with-parent", action="store_true")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if arguments.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    return attempt(RunFolder(arguments.folder))


def _end_with_parent() -> None:
    """A SIGKILL of the service closes our standard input: nothing may go on training that nobody waits for."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def attempt(folder: RunFolder) -> int:
    """One attempt: exit code 0 when both phases are complete, 1 with `error.json`, or `BUSY`."""
    is_main = int(os.environ.get("RANK", "0")) == 0
    with (folder.path / ".lock").open("a") as lock:
        if is_main:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.error("another process trains in %s", folder.path)
                return BUSY
            (folder.path / "error.json").unlink(missing_ok=True)
        try:
            train(folder)
        except Exception as error:  # the process boundary: the service reads the reason from the file
            failure = _failure(error)
            if failure.reason == "unexpected":
                log.exception("training failed")
            else:
                log.error("%s: %s", failure.reason, failure.error)
            _report(folder, failure, is_main)
            return 1
    return 0


def _report(folder: RunFolder, failure: Failure, is_main: bool) -> None:
    """Of several processes each can be the first to fail; the others then fail because it is gone, and know no reason.
    So a reason beats none."""
    known = folder.read(Failure, "error.json")
    if failure.reason != "unexpected" or (is_main and known is None):
        folder.write("error.json", failure)


def _failure(error: Exception) -> Failure:
    import torch

    from trainers.phase import TrainingFailure

    text = " ".join(str(error).split())[:500]
    is_cpu_allocation = isinstance(error, RuntimeError) and any(said in text for said in NO_CPU_MEMORY)
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or is_cpu_allocation:
        return Failure(
            reason="out_of_memory", error=f"{text} (lower batch_size or max_length, raise accumulation by as much)"
        )
    if isinstance(error, TrainingFailure):
        return Failure(reason=error.reason, error=text)
    if isinstance(error, SettingsError):
        return Failure(reason="recipe", error=text)
    if isinstance(error, HaypileError):
        return Failure(reason="snapshot", error=text)
    return Failure(reason="unexpected", error=f"{type(error).__name__}: {text}")


def train(folder: RunFolder) -> None:
    """Both phases of the plan in the folder, each once."""
    from accelerate import PartialState

    from trainers import dpo, sft
    from trainers.phase import TrainingFailure, load_tokenizer
    from trainers.reporting import check

    plan = folder.read(Plan, "plan.json")
    if plan is None:
        raise TrainingFailure("plan", f"{folder.path} has no plan.json")
    check(plan.recipe)
    state = PartialState(cpu=plan.recipe.device == "cpu")
    marker = Marker(folder, is_main=state.is_main_process)
    state.wait_for_everyone()  # all have read the progress before the first writes it
    if {"sft", "dpo"} <= set(marker.progress.completed):
        return
    tokenizer = load_tokenizer(plan.base_model)
    data = prepare(plan, tokenizer)
    marker.note(summary(data))
    if not data.sft:
        reasons = ", ".join(f"{count} {reason}" for reason, count in data.left_out.most_common())
        raise TrainingFailure("no_rows", f"no row to train on of {data.prompts} in the snapshot ({reasons or 'empty'})")
    if marker.starts("sft"):
        metrics = sft.train(
            plan, data, folder.phase("sft"), folder.curve, marker.before("sft"), marker.keep_before("sft")
        )
        state.wait_for_everyone()
        marker.completes("sft", metrics)
    if marker.starts("dpo"):
        if data.pairs:
            metrics = dpo.train(
                plan,
                data,
                folder.adapter("sft"),
                folder.phase("dpo"),
                folder.curve,
                marker.before("dpo"),
                marker.keep_before("dpo"),
            )
        else:
            # No pair differs enough in reward: SFT alone is a result, and says so.
            metrics = {"dpo_steps": 0}
        state.wait_for_everyone()
        marker.completes("dpo", metrics)


class Marker:
    """`progress.json`, written by the main process."""

    def __init__(self, folder: RunFolder, *, is_main: bool) -> None:
        self.folder = folder
        self.is_main = is_main
        self.progress: Progress = folder.progress()

    def starts(self, phase: str) -> bool:
        """Note that a phase begins. False when it is complete already."""
        if phase in self.progress.completed:
            return False
        self.progress.phase = phase
        self._write()
        return True

    def completes(self, phase: str, metrics: Metrics) -> None:
        """Note that a phase and its adapter are complete."""
        self.progress.completed.append(phase)
        self.note(metrics)
        log.info("%s: %s", phase, metrics)

    def note(self, metrics: Metrics) -> None:
        """Add to the metrics."""
        self.progress.metrics |= metrics
        self._write()

    def before(self, phase: str) -> float | None:
        """The validation loss that an earlier attempt measured before the phase."""
        value = self.progress.metrics.get(f"{phase}_loss_before")
        return float(value) if value is not None else None

    def keep_before(self, phase: str) -> Any:
        """A function that keeps that loss for later attempts."""
        return lambda value: self.note({f"{phase}_loss_before": value})

    def _write(self) -> None:
        if self.is_main:
            self.folder.write("progress.json", self.progress)


def prepare(plan: Plan, tokenizer: Any) -> TrainingSet:
    """Read the snapshots of the plan and make the training set."""
    from jinja2 import TemplateError

    from streams.snapshots import read_rows

    def length(turns: Turns) -> int | None:
        try:
            return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
        except TemplateError:
            return None

    rows: list[Row] = list(read_rows(plan.snapshot, "train"))
    held_out = {str(row["prompt_id"]) for row in read_rows(plan.snapshot, "eval")}
    replayed = plan.earlier_snapshots if plan.recipe.data.replay_share > 0 else []
    earlier: list[Row] = []
    for snapshot in dict.fromkeys([*plan.held_out_snapshots, *replayed]):
        try:
            held_out |= {str(row["prompt_id"]) for row in read_rows(snapshot, "eval")}
            earlier += read_rows(snapshot, "train") if snapshot in replayed else []
        except HaypileError as error:  # an old snapshot may have been tidied away: no reason to fail
            log.warning("nothing from %s: %s", snapshot, error)
    return build(
        rows,
        plan.recipe.data,
        length=length,
        sft_max_length=plan.recipe.sft.max_length,
        dpo_max_length=plan.recipe.dpo.max_length,
        seed=plan.recipe.seed,
        held_out=held_out,
        earlier=earlier,
        banned=_banned([*rows, *earlier], plan.forgotten),
    )


def _banned(rows: Sequence[Row], records: Sequence[Forgotten]) -> set[str]:
    """Prompt ids of forgotten rows. Raises `Fatal` when this process has not the key of the deletion records."""
    if not records:
        return set()
    from streams.forgotten import ForgottenList
    from streams.settings import load_settings

    forgotten = ForgottenList.of(load_settings().kafka)
    for record in records:
        forgotten.take(record)
    return {str(row["prompt_id"]) for row in rows if forgotten.row(row) is not None}


def summary(data: TrainingSet) -> Metrics:
    """Counts of a training set as metrics."""
    counts: Metrics = {
        "prompts": data.prompts,
        "sft_rows": len(data.sft),
        "dpo_pairs": len(data.pairs),
        "validation_rows": len(data.sft_validation),
        "replayed": data.replayed,
    }
    return counts | {f"left_out_{reason}": count for reason, count in sorted(data.left_out.items())}


if __name__ == "__main__":
    raise SystemExit(main())
