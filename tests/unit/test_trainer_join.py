"""Another machine of a run: which run it takes part in, and that it waits, ends and is asked for properly."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import Process, wait_for
from tests.support.training import quick_recipe, run_folder
from trainers.join import open_run
from trainers.recipe import Recipe
from trainers.rundir import Progress, Record, RunFolder

SEVERAL = {"num_processes": 4, "num_machines": 2, "main_address": "gpu-1:29500"}


def planned(runs: Path, name: str, at: int, machines: dict[str, object] | None = None) -> RunFolder:
    recipe = Recipe.model_validate(quick_recipe().model_dump() | {"launch": SEVERAL if machines is None else machines})
    folder = run_folder(runs / name, "/s", Path("/m"), recipe)
    os.utime(folder.path / "plan.json", (at, at))
    return folder


def found(runs: Path, rank: int = 1) -> str | None:
    run = open_run(runs, rank)
    return run[0].path.name if run else None


def test_it_takes_part_in_the_newest_run_that_has_training_left(tmp_path: Path) -> None:
    assert found(tmp_path) is None and found(tmp_path / "nowhere") is None
    planned(tmp_path, "old", 100)
    newest = planned(tmp_path, "new", 200)
    planned(tmp_path, "of-one-machine", 300, {})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "plan.json").write_text("{")
    (tmp_path / "only-asked").mkdir()
    assert (found(tmp_path), found(tmp_path, 2)) == ("new", None)
    newest.write("progress.json", Progress(phase="dpo", completed=["sft"]))
    assert found(tmp_path) == "new"
    newest.write("progress.json", Progress(phase="dpo", completed=["sft", "dpo"]))
    assert found(tmp_path) == "old", "what is left of the new one is the gate: that is for the first machine"
    RunFolder(tmp_path / "old").write("record.json", Record(outcome="failed"))
    assert found(tmp_path) is None


def test_the_command_waits_for_a_run_and_ends_when_told(tmp_path: Path) -> None:
    environ = {"HAYPILE_TRAINING__WORK_DIR": str(tmp_path / "runs")}
    process = Process(["-m", "deploy.cli", "trainer", "--join", "1"], tmp_path / "join.log", environ)
    try:
        wait_for("the machine", lambda: "machine 1 waits for a run" in process.text(), 60)
        process.signal(signal.SIGTERM)
        assert process.popen.wait(10) == 0
        assert "Traceback" not in process.text()
    finally:
        process.kill()


@pytest.mark.parametrize("rank", ["0", "x"])
def test_a_rank_is_a_number_above_0(rank: str) -> None:
    command = [sys.executable, "-m", "deploy.cli", "trainer", "--join", rank]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--join" in done.stderr
